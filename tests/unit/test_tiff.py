"""TIFF of every depth, packing and meaning of zero gives the pixels that are meant, and damage is noticed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tskd.data.images import IntensityWindow, image_size, read_image, read_mask_indices
from tskd.errors import UserError

RAMP = np.array([[0, 1, 2, 3], [4, 9, 14, 15]])


def write(path: Path, values: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, values, **options)
    return path


def grey(path: Path, **options: object) -> list[list[int]]:
    return read_image(path, **options)[..., 0].tolist()


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_every_depth_is_shown_by_its_own_range_and_high_is_bright(bits: int, photometric: str, tmp_path: Path) -> None:
    """Red where zero is black though the file says white, or 12 bits are taken for 16."""
    top = 2**bits - 1
    values = np.array([[0, top // 3, top // 2, top]], np.uint16 if bits > 8 else np.uint8)
    path = write(tmp_path / "a.tif", values, photometric=photometric, bitspersample=bits)
    levels = np.rint(values * (255 / top))
    inverted = photometric == "miniswhite"
    assert grey(path) == (255 - levels if inverted else levels).tolist()
    np.testing.assert_array_equal(read_mask_indices(path), top - values if inverted else values)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "lzma", "zstd"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_packing_gives_the_same(compression: str | None, dtype: type, tmp_path: Path) -> None:
    """Red where a decoder is missing, for which a good file is called damaged."""
    values = (RAMP / 15).astype(dtype) if dtype == np.float32 else RAMP.astype(dtype) * (np.iinfo(dtype).max // 15)
    path = write(tmp_path / "a.tif", values, compression=compression)
    assert grey(path) == (RAMP * 17).tolist()


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_16_bit_colours_packed_by_lzw_keep_their_depth(planar: str, tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint16).reshape(2, 4, 3) if planar == "contig" else None
    stored = np.arange(24, dtype=np.uint16).reshape(3, 2, 4) if values is None else values
    path = write(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, compression="lzw")
    shown = read_image(path, intensity=IntensityWindow(0, 255))
    np.testing.assert_array_equal(shown, np.moveaxis(stored, 0, -1) if values is None else values)


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (16, np.uint16)])
@pytest.mark.parametrize("table_bits", [8, 16])
def test_palettes_give_colours_as_images_and_indices_as_masks(
    bits: int, dtype: type, table_bits: int, tmp_path: Path
) -> None:
    """Red where a table of 16-bit colours is cut wrongly, or a label is replaced by its colour."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 2**bits))
    table = colours.astype(np.uint16) * (1 if table_bits == 8 else 257)
    values = np.array([[0, 1, 2], [3, 5, 2**bits - 1]], dtype)
    path = write(tmp_path / "a.tif", values, photometric="palette", colormap=table)
    np.testing.assert_array_equal(read_image(path), np.moveaxis(colours[:, values], 0, -1))
    np.testing.assert_array_equal(read_mask_indices(path), values)


def test_a_palette_of_black_and_white_is_a_grey_mask(tmp_path: Path) -> None:
    table = np.zeros((3, 256), np.uint16)
    table[:, 0] = 65535
    path = write(tmp_path / "a.tif", np.array([[0, 1]], np.uint8), photometric="palette", colormap=table)
    assert read_mask_indices(path).tolist() == [[255, 0]]


def test_a_window_is_of_the_stored_values_also_where_white_is_zero(tmp_path: Path) -> None:
    values = np.array([[0, 100, 200, 4000]], np.uint16)
    path = write(tmp_path / "a.tif", values, photometric="miniswhite")
    assert grey(path, intensity=IntensityWindow(0, 200)) == [[255, 127, 0, 0]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_page_is_turned_as_pillow_turns_it(orientation: int, tmp_path: Path) -> None:
    """Red where one of the eight turns is another."""
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    tag = (274, "H", 1, orientation, True)
    path = write(tmp_path / "a.tif", values, extratags=[tag])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    assert grey(path) == grey(tmp_path / "a.png")
    assert image_size(path) == image_size(tmp_path / "a.png") == np.array(grey(path)).shape


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "1"])
def test_what_pillow_reads_better_is_left_to_it(mode: str, tmp_path: Path) -> None:
    flat = Image.new("RGB", (8, 8), (200, 60, 30)).convert(mode)
    flat.save(tmp_path / "a.tif", compression="group4" if mode == "1" else None)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.asarray(flat.convert("RGB")))


@pytest.mark.parametrize("dtype", [np.int16, np.int8, np.uint32, np.int32])
def test_types_without_a_stated_range_ask_for_a_window(dtype: type, tmp_path: Path) -> None:
    """Red where signed values are inverted, wrapped or cut without a word."""
    low = -100 if np.dtype(dtype).kind == "i" else 0
    path = write(tmp_path / "a.tif", np.array([[low, 0, 100]], dtype))
    with pytest.raises(UserError, match=r"a\.tif: .*have no stated range.*data\.window"):
        read_image(path)
    assert grey(path, intensity=IntensityWindow(-100, 100))[0] == ([0, 128, 255] if low else [128, 128, 255])


def test_jpeg_of_12_bits_is_read(tmp_path: Path) -> None:
    """Red where a scanner's JPEG of 12 bits, which Pillow cannot decode, is called damaged."""
    values = np.full((16, 16), 4095 // 3, np.uint16)
    path = write(tmp_path / "a.tif", values, compression="jpeg", compressionargs={"bitspersample": 12, "level": 100},
                 bitspersample=12)  # fmt: skip
    assert np.abs(read_image(path).astype(int) - 85).max() <= 1


@pytest.mark.parametrize("truncate", [True, False])
def test_a_stack_of_imagej_is_refused_also_where_it_is_one_page(truncate: bool, tmp_path: Path) -> None:
    """Red where the first of its pictures is answered as if it were all: ImageJ writes stacks above 4 GB so."""
    stack = np.arange(2 * 5 * 6, dtype=np.uint8).reshape(2, 5, 6)
    with pytest.raises(UserError, match="holds 2 pages or frames"):
        read_image(write(tmp_path / "a.tif", stack, imagej=True, truncate=truncate))
    assert grey(write(tmp_path / "b.tif", stack[0], imagej=True)) == stack[0].tolist()
    note = "ImageJ=1.54\nimages=2\nslices=2\n"
    assert grey(write(tmp_path / "c.tif", stack[0], description=note, metadata=None)) == stack[0].tolist(), "one of two"


def flips(whole: bytes, places: range) -> Iterator[bytes]:
    for place in places:
        for bit in (0, 6):
            yield whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :]


@pytest.mark.parametrize(
    ("options", "samples"),
    [({}, ()), ({"predictor": True, "tile": (16, 16)}, ()), ({"photometric": "separated"}, (4,))],
    ids=["strips", "tiles", "CMYK"],
)
def test_every_flipped_bit_of_deflated_pixels_is_noticed(
    options: dict[str, object], samples: tuple[int, ...], tmp_path: Path
) -> None:
    """Red where the checksum at the end of a strip is not read, as libtiff does not."""
    values = np.random.default_rng(0).integers(0, 9, (6, 6, *samples), np.uint8)
    path = write(tmp_path / "a.tif", values, compression="zlib", **options)
    expected = read_image(path)
    with tifffile.TiffFile(path) as file:
        begin, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    assert count > len(zlib.compress(b""))
    wrong = 0
    for content in flips(path.read_bytes(), range(begin, begin + count)):
        (tmp_path / "b.tif").write_bytes(content)
        try:
            wrong += not np.array_equal(read_image(tmp_path / "b.tif"), expected)
        except UserError:
            continue
    assert wrong == 0


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", None])
def test_every_cut_is_noticed(compression: str | None, tmp_path: Path) -> None:
    """Red where what was cut off is a tag, without which the pixels are read as something else."""
    colours = np.random.default_rng(0).integers(0, 255, (5, 6, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.tif", compression=compression)
    whole = (tmp_path / "a.tif").read_bytes()
    for length in range(1, len(whole)):
        (tmp_path / "b.tif").write_bytes(whole[:length])
        try:
            found = read_image(tmp_path / "b.tif")
        except UserError:
            continue
        np.testing.assert_array_equal(found, colours)  # the last byte may be one that fills up


def with_tag(path: Path, code: int, value: int) -> Path:
    """Overwrite a tag of the first page."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[code].overwrite(value)
    return path


@pytest.mark.parametrize(
    ("code", "value", "message"),
    [
        (256, 0, "not an image"),
        (257, 0, "not an image"),
        (256, 80_000_000, "a side of more than"),
        (257, 2**31, "a side of more than"),
        (277, 60_000, "channels"),
        (273, 10**9, "cut short"),
        (279, 10**9, "cut short"),
        (279, 0, "cut short|damaged"),
    ],
)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_lies_in_a_header_are_found_before_anything_is_read(
    compression: str | None, code: int, value: int, message: str, tmp_path: Path
) -> None:
    """Red where a stated size is believed, or an empty image is a traceback."""
    path = write(tmp_path / "a.tif", np.zeros((8, 8), np.uint8), compression=compression, extratags=[])
    with_tag(path, code, value)
    with pytest.raises(UserError, match=rf"a\.tif: .*({message})"):
        read_image(path)


@pytest.mark.parametrize("values", [np.zeros((4, 4), np.complex64), np.zeros((4, 4, 7), np.uint8)])
def test_what_is_no_picture_is_said_to_be_none(values: np.ndarray, tmp_path: Path) -> None:
    options = {"photometric": "minisblack", "planarconfig": "contig"} if values.ndim == 3 else {}
    with pytest.raises(UserError, match="channels of"):
        read_image(write(tmp_path / "a.tif", values, **options))
