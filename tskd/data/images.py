"""Image and mask files to arrays, whatever the format; DICOM and NIfTI are handed to their own readers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image, ImageOps

from tskd.data import dicom, nifti
from tskd.data.alpha import label_of_alpha
from tskd.data.dicom_files import require_image
from tskd.data.exif import exchanges_sides, stated_orientation, turned
from tskd.data.intensity import IntensityWindow, to_rgb, to_uint8
from tskd.data.labels import in_8_bits, map_labels, names_classes, whole
from tskd.data.reading import MAX_PIXELS, reading, require_size
from tskd.data.tiff import Tiff, is_tiff, read_tiff, require_page, tiff_size
from tskd.errors import UserError

__all__ = ["IMAGE_SUFFIXES", "IntensityWindow", "image_size", "map_labels", "read_image", "read_mask_indices"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".webp")
"""What Pillow and tifffile read here, lower case."""

_MAX_BYTES = 2**30  # of a file that its decoder reads as a whole
_DEEP_MODES = {"I;16": np.uint16, "I;16L": np.uint16, "I;16B": np.uint16, "I": np.int32, "F": np.float32}


def read_image(
    path: Path, *, index: int | None = None, intensity: IntensityWindow | None = None, axis: int = 2
) -> np.ndarray:
    """Read one image as (H, W, 3) uint8 RGB.

    Grey is repeated, alpha dropped, the EXIF orientation honoured. 1 bit becomes 0 and 255, 8 bit stays, unsigned
    16 bit is divided by 257; other types need ``intensity``. ``index`` chooses the page of a stack, the frame of a
    DICOM file or the slice of a NIfTI volume along ``axis``. Raises :class:`UserError` naming the file and the remedy.
    """
    _require_content(path)
    if nifti.is_nifti(path):
        number = _required(index, path, "slice of a volume")
        return to_rgb(nifti.read_slice(path, number, window=intensity, axis=axis))
    if dicom.is_dicom(path):
        return to_rgb(dicom.read_frame(path, index=index, window=intensity))
    with _opened(path, index) as image:
        if isinstance(image, Tiff):
            return to_rgb(image.shown(intensity, path))
        values = _image_values(image)
    return to_rgb(to_uint8(values, intensity, path))


def from_pillow(image: Image.Image, *, intensity: IntensityWindow | None = None) -> np.ndarray:
    """Return what :func:`read_image` does, of an image that Pillow holds; of 16-bit colours Pillow has kept 8 bits."""
    path = Path(getattr(image, "filename", "") or "the image")
    with reading(path, _explain):
        values = _image_values(ImageOps.exif_transpose(image))
    return to_rgb(to_uint8(values, intensity, path))


def read_stored(path: Path, *, index: int | None = None, axis: int = 2) -> np.ndarray:
    """Read an image's values before they become grey levels, (H, W) or (H, W, C); ``index`` and ``axis`` as above."""
    _require_content(path)
    if nifti.is_nifti(path):
        return nifti.read_values(path, _required(index, path, "slice of a volume"), axis=axis)
    if dicom.is_dicom(path):
        return dicom.read_rescaled(path, index=index)
    with _opened(path, index) as image:
        return image.values if isinstance(image, Tiff) else _image_values(image)


def read_mask_indices(path: Path, *, index: int | None = None) -> np.ndarray:
    """Read one mask's raw values: (H, W) grey levels or palette indices, or (H, W, 3) for colours; nothing is mapped.

    1 bit gives 0 and 1; a palette of black and white alone, whichever comes first, gives 0 and 255, as does that of a
    system (:func:`names_classes`) of which nothing else is used. A colour file whose channels agree everywhere is
    grey. A label that is in alpha alone gives 0 and 255. Raises :class:`UserError` naming the file and the remedy.
    """
    _require_content(path)
    if nifti.is_nifti(path):
        return nifti.read_label_slice(path, _required(index, path, "slice of a volume"))
    if dicom.is_dicom(path):
        return dicom.read_stored(path, index=index)
    with _opened(path, index) as image:
        label = label_of_alpha(image.values if isinstance(image, Tiff) else image, path)
        values = _mask_values(image) if label is None else label
    if values.dtype.kind == "f":
        values = whole(values, path)
    if values.ndim == 3:
        return in_8_bits(values, path)
    return values.astype(np.uint8) if values.dtype == bool else values


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) from the file's head, after EXIF orientation, without decoding the pixels."""
    _require_content(path)
    if nifti.is_nifti(path):
        _required(None, path, "slice of a volume")
    if dicom.is_dicom(path):
        head = dicom.read_head(path)
        require_image(head)
        return head.size
    with reading(path, _explain):
        if is_tiff(path):
            return tiff_size(path)
        with _picture(path) as image:
            width, height = image.size
            swapped = exchanges_sides(stated_orientation(image))
    return (width, height) if swapped else (height, width)


def _require_content(path: Path) -> None:
    if not path.is_file():
        what = "is a folder, not an image." if path.is_dir() else "there is no such file."
        raise UserError(f"{path}: {what}")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes). Copy it again from the source or remove it.")


def _required(index: int | None, path: Path, what: str) -> int:
    if index is None:
        raise UserError(f"{path}: holds a volume; an image is one {what}. Use the `nifti` layout, or give the index.")
    return index


def _explain(error: BaseException) -> str | None:
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS // 10**6} million pixels. Cut it into tiles or reduce it first."
    if "MAX_TEXT" in str(error):
        return "carries more text, or a larger colour profile, than a picture needs. Save it again without metadata."
    if isinstance(error, Image.UnidentifiedImageError):
        return (
            "is not an image that can be read (damaged, or another type under this name). "
            f"Allowed: {', '.join(IMAGE_SUFFIXES)}, DICOM, NIfTI. Save it again as PNG (a volume as .nii.gz) "
            "or remove it."
        )
    return None


@contextmanager
def _picture(path: Path) -> Iterator[Image.Image]:
    """Yield what Pillow sees; it is given the open file, since it may lie in memory alone."""
    with path.open("rb") as file, Image.open(file) as image:
        yield image


@contextmanager
def _opened(path: Path, index: int | None) -> Iterator[Image.Image | np.ndarray | Tiff]:
    """Yield a Pillow image at the wanted page, a TIFF's page, or the array of a PNG that Pillow would cut to 8 bit."""
    with reading(path, _explain):
        if is_tiff(path) and (page := read_tiff(path, index)) is not None:
            yield page
            return
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(
                f"{path}: more than {_MAX_BYTES // 2**30} GB, which no picture needs. Save it again as PNG."
            )
        deep = _require_whole_png(path)
        with _picture(path) as image:
            require_size(image.height, image.width, path)
            _seek(image, path, index)
            if deep:
                yield turned(imagecodecs.png_decode(path.read_bytes()), stated_orientation(image))
                return
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            yield image


def _seek(image: Image.Image, path: Path, index: int | None) -> None:
    if image.format == "MPO":  # a phone's JPEG: what follows the photograph is a preview, not a page
        return
    require_page(getattr(image, "n_frames", 1), path, index)
    image.seek(index or 0)


def _require_whole_png(path: Path) -> bool:
    """Read a PNG's checksums, which Pillow skips as it decodes; tell whether it is one of 16-bit colours."""
    with path.open("rb") as file:
        head = file.read(26)
    if not head.startswith(b"\x89PNG\r\n\x1a\n"):
        return False
    with _picture(path) as image:
        require_size(image.height, image.width, path)
        image.verify()
    return head[24] == 16 and head[25] != 0


def _image_values(image: Image.Image | np.ndarray | Tiff) -> np.ndarray:
    if isinstance(image, Tiff):
        return image.labels()
    if isinstance(image, np.ndarray):
        return image
    if image.mode in _DEEP_MODES:
        return np.asarray(image).astype(_DEEP_MODES[image.mode])
    if image.mode in ("1", "L", "RGB"):
        return np.asarray(image)
    return np.asarray(image.convert("L" if image.mode in ("LA", "La") else "RGB"))


def _mask_values(image: Image.Image | np.ndarray | Tiff) -> np.ndarray:
    if isinstance(image, Image.Image) and image.mode == "P" and image.format != "GIF" and not _black_and_white(image):
        return np.asarray(image)  # an indexed mask: the index is the label; a GIF's palette order means nothing
    values = _image_values(image)
    if values.ndim == 2:
        return values
    values = values[..., :3] if values.shape[-1] > 2 else values[..., :1]
    grey = values[..., 0]
    return np.ascontiguousarray(grey) if (values == grey[..., None]).all() else values


def _black_and_white(image: Image.Image) -> bool:
    if names_classes(np.reshape(image.getpalette() or (), (-1, 3))):
        return False
    used = image.convert("RGB").getcolors(maxcolors=2) or []
    indices = np.asarray(image)
    told_by_index = len(used) == 1 and bool((indices != indices.flat[0]).any())  # two entries of one colour
    return bool(used) and not told_by_index and {colour for _, colour in used} <= {(0, 0, 0), (255, 255, 255)}


def label_is_in_alpha(path: Path) -> bool:
    """Tell whether :func:`read_mask_indices` takes the label from alpha; raises :class:`UserError` as it does."""
    if path.suffix.lower() not in (".tif", ".tiff"):  # of these Pillow does not know all
        with reading(path, _explain), _picture(path) as image:
            if not image.has_transparency_data:
                return False
    with _opened(path, None) as image:
        return label_of_alpha(image.values if isinstance(image, Tiff) else image, path) is not None
