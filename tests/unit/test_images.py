"""Every image and mask format gives the stated pixels, and every broken file a plain message."""

from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from tskd.data.exif import orientation_of
from tskd.data.images import IntensityWindow, image_size, map_labels, read_image, read_mask_indices
from tskd.data.labels import colour_key, values_in, whole
from tskd.errors import UserError

COLOURS = np.array([[[10, 20, 30], [200, 100, 50]], [[0, 0, 0], [255, 255, 255]], [[1, 2, 3], [9, 8, 7]]], np.uint8)
GREY = np.array([[0, 1, 128], [200, 254, 255]], np.uint8)


def save(values: np.ndarray, path: Path, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp"])
def test_colour_stays(suffix: str, tmp_path: Path) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(COLOURS, tmp_path / f"a.{suffix}", **options)
    np.testing.assert_array_equal(read_image(path), COLOURS)
    assert image_size(path) == (3, 2)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_grey_is_repeated(suffix: str, tmp_path: Path) -> None:
    image = read_image(save(GREY, tmp_path / f"a.{suffix}"))
    assert image.shape == (2, 3, 3)
    np.testing.assert_array_equal(image, np.repeat(GREY[..., None], 3, axis=-1))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_1_bit_becomes_0_and_255_as_image_and_0_and_1_as_mask(suffix: str, tmp_path: Path) -> None:
    path = save(GREY > 127, tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(path)[..., 0], (GREY > 127) * 255)
    np.testing.assert_array_equal(read_mask_indices(path), GREY > 127)


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    transparent = np.dstack([COLOURS, np.zeros((3, 2), np.uint8)])
    np.testing.assert_array_equal(read_image(save(transparent, tmp_path / "a.png")), COLOURS)
    grey_alpha = save(np.dstack([GREY, GREY]), tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(grey_alpha)[..., 1], GREY)


def test_cmyk_jpeg_is_rgb(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 60, 30), np.uint8)
    image = read_image(save(flat, tmp_path / "a.jpg", "CMYK", quality=100))
    assert np.abs(image.astype(int) - flat).max() <= 4


def test_exif_orientation_turns_image_and_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    path = save(COLOURS, tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(path), np.rot90(COLOURS, -1))
    assert image_size(path) == (2, 3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_is_divided_by_257_whatever_it_holds(suffix: str, tmp_path: Path) -> None:
    path = save(np.array([[0, 257, 600 * 257 // 6]], np.uint16), tmp_path / f"a.{suffix}")
    assert read_image(path)[0, :, 0].tolist() == [0, 1, 100]
    assert read_mask_indices(path).dtype == np.uint16


def test_16_bit_colour_tiff_keeps_its_depth_under_a_window(tmp_path: Path) -> None:
    values = np.array([[[0, 500, 1000], [250, 1001, 60000]]], np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    image = read_image(tmp_path / "a.tif", intensity=IntensityWindow(0, 1000))
    assert image.tolist() == [[[0, 128, 255], [64, 255, 255]]]


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("orientation", [1, 6])
def test_16_bit_colour_png_keeps_its_depth_under_a_window(orientation: int, channels: int, tmp_path: Path) -> None:
    """Red where colours are cut to their high byte, as Pillow does: of 12 bits in 16, four bits stay."""
    values = np.arange(6 * channels, dtype=np.uint16).reshape(2, 3, channels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = imagecodecs.png_encode(values)
    tag = exif.tobytes().removeprefix(b"Exif\0\0")
    path = tmp_path / "a.png"
    path.write_bytes(plain[:33] + chunk(b"eXIf", tag) + plain[33:])
    image = read_image(path, intensity=IntensityWindow(0, 255))
    colours = np.repeat(values[..., :1], 3, axis=-1) if channels == 2 else values[..., :3]
    np.testing.assert_array_equal(image, np.rot90(colours, -1) if orientation == 6 else colours)
    np.testing.assert_array_equal(read_image(path), image // 129)  # to 8 bit by 257, rounded


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def test_every_flipped_bit_and_every_cut_of_a_png_is_noticed(tmp_path: Path) -> None:
    """Red where the checksums of pixels, or of what else a file holds, are not read, as Pillow does not."""
    values = np.random.default_rng(0).integers(0, 9, (5, 6), np.uint8)
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "a longer text", zip=True)
    whole = save(values, tmp_path / "a.png", pnginfo=info).read_bytes()
    end = len(whole) - 12  # the last chunk is empty, and only marks the end
    broken = [whole[:place] for place in range(1, end)]
    broken += [whole[:k] + bytes([whole[k] ^ 32]) + whole[k + 1 :] for k in range(end)]
    for content in broken:
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(UserError, match=r"b\.png: .*(damaged|a side of more|not an image)"):
            read_image(tmp_path / "b.png")


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_bomb_in_a_png_is_refused_in_words_and_little_memory(kind: bytes, tmp_path: Path) -> None:
    """Red where a packed text is unpacked whatever its size, or the picture is called damaged."""
    plain = save(GREY, tmp_path / "a.png").read_bytes()
    packed = zlib.compress(bytes(2**26))
    (tmp_path / "b.png").write_bytes(plain[:33] + chunk(kind, b"name\0\0" + packed) + plain[33:])
    tracemalloc.start()
    with pytest.raises(UserError, match=r"b\.png: carries more text, or a larger colour profile"):
        read_image(tmp_path / "b.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "jpg", "bmp"])
def test_a_file_with_a_hole_of_gigabytes_is_not_read(suffix: str, tmp_path: Path) -> None:
    """Red where a decoder is handed a file that it reads as a whole, whatever its size."""
    path = save(GREY, tmp_path / f"a.{suffix}")
    with path.open("r+b") as file:
        file.truncate(2**33)
    with pytest.raises(UserError, match=rf"a\.{suffix}: more than 1 GB"):
        read_image(path)


def test_float_needs_the_unit_range_or_a_window(tmp_path: Path) -> None:
    unit, wide, broken = (tmp_path / f"{name}.tif" for name in ("unit", "wide", "broken"))
    tifffile.imwrite(unit, np.array([[0, 0.5, 1]], np.float32))
    tifffile.imwrite(wide, np.array([[-100, 0, 100]], np.float32))
    tifffile.imwrite(broken, np.array([[0, np.nan, 1]], np.float32))
    assert read_image(unit)[0, :, 0].tolist() == [0, 128, 255]
    assert read_image(wide, intensity=IntensityWindow(0, 100))[0, :, 0].tolist() == [0, 0, 255]
    with pytest.raises(UserError, match=r"-100 to 100.*window"):
        read_image(wide)
    with pytest.raises(UserError, match="NaN"):
        read_image(broken)
    tifffile.imwrite(wide, np.array([[-0.5, 0, 0.5]], np.float32))
    with pytest.raises(UserError, match=r"-0\.5 to 0\.5.*window"):
        read_image(wide)


@pytest.mark.parametrize("window", [(5, 5), (9, 1), (0, float("nan"))])
def test_a_window_needs_low_below_high(window: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="low below high"):
        IntensityWindow(*window)


@pytest.mark.parametrize("suffix", ["tif", "gif"])
def test_pages_are_refused_unless_one_is_named(suffix: str, tmp_path: Path) -> None:
    first, second = (Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 20))
    path = tmp_path / f"stack.{suffix}"
    first.save(path, save_all=True, append_images=[second])
    with pytest.raises(UserError, match="2 pages or frames"):
        read_image(path)
    assert read_image(path, index=1)[0, 0].tolist() == [20, 20, 20]
    with pytest.raises(UserError, match="page 2 asked for"):
        read_image(path, index=2)


def broken_files(folder: Path) -> dict[str, str]:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = save(noise, folder / "whole.png").read_bytes()
    (folder / "empty.png").write_bytes(b"")
    (folder / "short.png").write_bytes(whole[: len(whole) // 2])
    (folder / "short.jpg").write_bytes(save(noise, folder / "whole.jpg").read_bytes()[:900])
    (folder / "text.png").write_text("not an image")
    (folder / "text.tif").write_text("not an image")
    (folder / "magic.tif").write_bytes(b"II*\0" + b"\xff" * 40)
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    (folder / "text.dcm").write_text("not DICOM")
    (folder / "text.nii.gz").write_text("not NIfTI")
    return {
        "absent.png": "no such file", "empty.png": "0 bytes", "short.png": "cut short", "short.jpg": "cut short",
        "text.png": "is not an image", "text.tif": "is not an image", "magic.tif": "damaged",
        "huge.png": "million pixels",
        "text.dcm": "DICOM", "text.nii.gz": "NIfTI",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_files_are_named_with_a_remedy(tmp_path: Path) -> None:
    for name, message in broken_files(tmp_path).items():
        for reader in (read_image, read_mask_indices):
            with pytest.raises(UserError, match=message) as caught:
                reader(tmp_path / name, index=0 if name.endswith(".nii.gz") else None)
            assert name in str(caught.value)


def test_an_indexed_png_gives_indices_and_a_gif_its_greys(tmp_path: Path) -> None:
    indexed = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    indexed.save(tmp_path / "a.png")
    assert read_mask_indices(tmp_path / "a.png").tolist() == [[0, 1, 2]]
    two = Image.fromarray(np.array([[0, 1, 1]], np.uint8)).convert("P")
    two.putpalette([0, 0, 0, 255, 0, 0])
    two.save(tmp_path / "red.png")
    assert read_mask_indices(tmp_path / "red.png").tolist() == [[0, 1, 1]], "two colours, but not black and white"
    white_first = Image.fromarray(np.array([[0, 1, 1]], np.uint8)).convert("P")
    white_first.putpalette([255, 255, 255, 0, 0, 0])
    for name in ("b.png", "b.gif"):
        white_first.save(tmp_path / name)
        assert read_mask_indices(tmp_path / name).tolist() == [[255, 0, 0]]
    Image.fromarray(np.array([[0, 128, 255]], np.uint8)).save(tmp_path / "c.gif")
    assert read_mask_indices(tmp_path / "c.gif").tolist() == [[0, 128, 255]]
    indexed.save(tmp_path / "d.gif")
    assert read_mask_indices(tmp_path / "d.gif").tolist() == [[[0, 0, 0], [255, 0, 0], [0, 255, 0]]]


def test_colour_masks_stay_colours_and_grey_ones_collapse(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_mask_indices(save(COLOURS, tmp_path / "a.png")), COLOURS)
    np.testing.assert_array_equal(read_mask_indices(save(np.dstack([GREY] * 3), tmp_path / "b.bmp")), GREY)


def test_a_mask_of_fractions_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 0.5]], np.float32))
    with pytest.raises(UserError, match="fractions"):
        read_mask_indices(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("raw", "classes", "expected"),
    [
        ([0, 1], 1, [0, 1]),
        ([0, 255], 1, [0, 1]),
        ([255, 255], 1, [1, 1]),
        ([0, 0], 1, [0, 0]),
        ([0, 3, 2], 3, [0, 3, 2]),
    ],
)
def test_plain_labels(raw: list[int], classes: int, expected: list[int]) -> None:
    mapped = map_labels(np.array([raw], np.uint8), None, classes=classes, path=Path("m.png"))
    assert mapped.dtype == np.uint8
    assert mapped.tolist() == [expected]


@pytest.mark.parametrize(("raw", "classes"), [([0, 1, 255], 1), ([0, 128], 1), ([0, 4], 3), ([0, 255], 3)])
def test_labels_that_are_not_plain_are_refused_with_values_and_remedy(raw: list[int], classes: int) -> None:
    with pytest.raises(UserError) as caught:
        map_labels(np.array([raw], np.uint8), None, classes=classes, path=Path("m.png"))
    assert all(text in str(caught.value) for text in ("m.png", str(raw[-1]), "allowed", "labels:"))


def test_label_map_by_value_and_by_colour() -> None:
    by_value = map_labels(np.array([[0, 63, 9]], np.uint16), {63: 1, 9: 255}, classes=1, path=Path("m.png"))
    assert by_value.tolist() == [[0, 1, 255]]
    colours = np.array([[[255, 0, 0], [0, 0, 0], [0, 0, 255]]], np.uint8)
    table = {colour_key("#ff0000"): 1, colour_key("#0000ff"): 2}
    assert map_labels(colours, table, classes=2, path=Path("m.png")).tolist() == [[1, 0, 2]]
    with pytest.raises(UserError, match="#0000ff are not in the label map"):
        map_labels(colours, {colour_key("#ff0000"): 1}, classes=1, path=Path("m.png"))
    with pytest.raises(UserError, match="class 3 is not one of 0 to 2"):
        map_labels(np.array([[7]], np.uint8), {7: 3}, classes=2, path=Path("m.png"))
    with pytest.raises(UserError, match="a mask in colours"):
        map_labels(colours, {255: 1}, classes=1, path=Path("m.png"))


def test_a_jpeg_mask_is_recognised(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[20:44, 13:51] = 255
    path = save(mask, tmp_path / "m.jpg", quality=75)
    with pytest.raises(UserError, match=r"smear around 0 and 255.*PNG"):
        map_labels(read_mask_indices(path), None, classes=1, path=path)


def test_labels_kept_as_floating_point_are_rounded_where_that_is_all_that_is_wrong() -> None:
    values = np.array([[0.0, 0.9999], [1.0009, 2.0]])
    assert whole(values, Path("a.tif")).tolist() == [[0, 1], [1, 2]]
    with pytest.raises(UserError, match=r"a\.tif: .*fractions such as 0\.998\. Round it"):
        whole(np.array([[0.0, 0.998]]), Path("a.tif"))
    for odd, said in ((np.nan, "NaN"), (np.inf, "infinite"), (3e10, "too large")):
        with pytest.raises(UserError, match=said):
            whole(np.array([0.0, odd]), Path("a.tif"))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, ">i2"])
def test_whole_numbers_are_taken_as_they_are(dtype: str | type) -> None:
    """Red where masks of one byte a pixel go through floating point: 100 times slower, and most masks are such."""
    values = np.array([[0, 3, 100]], dtype)
    found = whole(values, Path("a.nii"))
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    assert found.tolist() == [[0, 3, 100]]
    mapped = map_labels(found, {3: 1, 100: 2}, classes=2, path=Path("a.nii"))
    assert mapped.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(("dtype", "label"), [(np.uint32, 2**31), (np.int64, -(2**40)), (np.uint64, 2**63)])
def test_whole_numbers_beyond_32_bits_are_refused(dtype: type, label: int) -> None:
    assert whole(np.array([7], dtype), Path("a.nii")).dtype == np.int32
    with pytest.raises(UserError, match=f"the label {label:g}, which is too large".replace("+", r"\+")):
        whole(np.array([0, label], dtype), Path("a.nii"))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint64])
def test_labels_of_every_type_of_number_are_mapped(dtype: type) -> None:
    """Red where values that are negative, or far apart, are looked up in a table by their size."""
    for odd in (-3, 100, 2**20):
        if np.iinfo(dtype).min <= odd <= np.iinfo(dtype).max:
            raw = np.array([[0, odd, 1]], dtype)
            assert map_labels(raw, {odd: 2, 1: 1}, classes=2, path=Path("a.nii")).tolist() == [[0, 2, 1]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_of_16_bits_are_the_8_that_they_were_written_from(suffix: str, tmp_path: Path) -> None:
    """Red where a channel overflows into its neighbour: blue became the class of cyan."""
    path = tmp_path / f"a.{suffix}"
    table = {colour_key("#00ffff"): 1, colour_key("#0000ff"): 2}
    for values in ([[0, 0, 65535], [0, 65535, 65535], [0, 0, 0]], [[0, 0, 255], [0, 255, 255], [0, 0, 0]]):
        write_16_bits(np.array([values], np.uint16), path)
        assert map_labels(read_mask_indices(path), table, classes=2, path=path).tolist() == [[2, 1, 0]]
    write_16_bits(np.array([[[0, 0, 65535], [0, 0, 65000]]], np.uint16), path)
    with pytest.raises(UserError, match=r"a\..*more than 8 bits a channel.*values up to 65535.*Save the mask"):
        read_mask_indices(path)


def write_16_bits(values: np.ndarray, path: Path) -> None:
    if path.suffix == ".tif":
        tifffile.imwrite(path, values, photometric="rgb")
    else:
        path.write_bytes(imagecodecs.png_encode(values))


def test_greys_of_16_bits_under_a_map_of_colours(tmp_path: Path) -> None:
    grey = np.array([[0, 65535, 257]], np.uint16)
    table = {colour_key("#ffffff"): 1, colour_key("#010101"): 2}
    assert map_labels(grey, table, classes=2, path=tmp_path / "a.png").tolist() == [[0, 1, 2]]
    with pytest.raises(UserError, match="more than 8 bits"):
        map_labels(np.array([[300]], np.uint16), table, classes=2, path=tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_whether_an_index_is_a_label_is_told_by_the_palette_not_by_what_a_mask_uses(
    suffix: str, tmp_path: Path
) -> None:
    """Red where a mask with the classes black and white of three is read as 0 and 255, others as indices."""
    path = tmp_path / f"a.{suffix}"
    for used in ([0, 1, 2], [0, 1, 1], [0, 0, 0], [1, 1, 1]):
        indexed(used, [0, 0, 0, 255, 255, 255, 255, 0, 0]).save(path)
        assert read_mask_indices(path).tolist() == [used]
        indexed([one % 2 for one in used], [0, 0, 0, 255, 255, 255] + 6 * [0]).save(path)
        assert read_mask_indices(path).tolist() == [[255 * (one % 2) for one in used]], "padded with black"
    many = [0, 0, 0, 255, 255, 255] + [level for level in range(1, 15) for _ in range(3)]
    indexed([0, 1, 1], many).save(path)
    assert set(values_in(read_mask_indices(path)).tolist()) == {0, 255}, "the 16 colours of a system"


def indexed(values: list[int], palette: list[int]) -> Image.Image:
    image = Image.fromarray(np.array([values], np.uint8)).convert("P")
    image.putpalette(palette)
    return image


@pytest.mark.parametrize("where", ["eXIf", "text", "behind the pixels", "nowhere"])
def test_the_size_of_a_png_is_read_without_its_pixels(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red where an orientation is missed, wherever Pillow looks for it, or a PNG without one is decoded."""
    exif = Image.Exif()
    exif[0x0112] = 6
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "a scanner")
    if where == "text":
        info.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes()):8d}\n{exif.tobytes().hex()}\n", zip=True)
    path = save(COLOURS, tmp_path / "a.png", pnginfo=info, **({"exif": exif} if where == "eXIf" else {}))
    if where == "behind the pixels":
        plain = path.read_bytes()
        tag = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        path.write_bytes(plain[:-12] + tag + plain[-12:])
    if where == "nowhere":
        monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    assert image_size(path) == ((3, 2) if where == "nowhere" else (2, 3))
    assert orientation_of(path) == (1 if where == "nowhere" else 6)
