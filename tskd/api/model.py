"""A shipped model in Python: images in, masks out, by the same onnxruntime session as `tskd predict`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tskd.api.pixels import as_pixels
from tskd.api.show import Table, image_html
from tskd.deploy.bundle import Bundle, open_bundle
from tskd.deploy.doubt import remark
from tskd.deploy.tiles import ask_by_size
from tskd.errors import UserError
from tskd.overlays import draw_overlay, enlargement

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, repr=False)
class Prediction:
    """What a model says about one image."""

    classes: np.ndarray
    """(H, W) uint8 class index, 0 background."""
    probabilities: np.ndarray
    """(K + 1, H, W) float32, background first."""
    names: tuple[str, ...]
    """Of the foreground classes: index 1 is the first."""
    image: np.ndarray
    """(H, W, 3) uint8: what was looked at."""
    confidence: float | None = None
    """Mean probability of the answered class over the mask; None for bundles of before."""
    unfamiliarity: float | None = None
    """Distance from the training images, 1 is the limit; None where it is not measured."""
    look: str = ""
    """Why somebody should look at it: unsure, unlike the training images; empty where nothing speaks for it."""

    @property
    def areas(self) -> Table:
        """Pixels of each class, and their share of the image: columns class, pixels, share."""
        counts = np.bincount(self.classes.ravel(), minlength=len(self.names) + 1)[1:].tolist()
        return Table(
            {"class": name, "pixels": count, "share": count / self.classes.size}
            for name, count in zip(self.names, counts)
        )

    @property
    def overlay(self) -> Image.Image:
        """The mask drawn on the image."""
        from PIL import Image

        drawn = draw_overlay(self.image, None, self.classes, classes=len(self.names), enlarge=enlargement(self.image))
        return Image.fromarray(drawn)

    def __repr__(self) -> str:
        height, width = self.classes.shape
        shares = ", ".join(f"{row['class']} {row['share']:.1%}" for row in self.areas)
        return f"Prediction({width}x{height}: {shares})"

    def _repr_html_(self) -> str:
        return image_html(self.overlay, "prediction drawn on the image") + self.areas._repr_html_()


@dataclass(frozen=True)
class Model:
    """A bundle whose files were checked when it was loaded."""

    bundle: Bundle

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the foreground classes."""
        return self.bundle.classes

    @property
    def card(self) -> str:
        """The model card, Markdown: what it was trained on, what it scored, what it is not for."""
        return self.bundle.card

    @cached_property
    def _session(self) -> Any:
        return self.bundle.session()

    def predict(self, image: Any, *, tile: int | None = None) -> Prediction:
        """Segment one image: a path (PNG, JPEG, TIFF, single DICOM, ...), a PIL image, an array or a tensor.

        Files and PIL images are read as `tskd predict` reads them; arrays, (H, W) or (H, W, 3) uint8 or floats in
        [0, 1], are taken as they are shown. ``tile``: larger images are answered in overlapping
        tiles of so many px, 0: as a whole; None: as it was trained. Volumes and folders: `tskd predict`. Raises
        UserError for what cannot be read, and for tiles below 16 px.
        """
        pixels = self._read(Path(image)) if isinstance(image, str | Path) else self._taken(image)
        answer = ask_by_size(self._session, pixels, self.bundle.tile_for(tile))
        return Prediction(
            answer.classes, answer.probabilities, self.classes, pixels, answer.confidence, answer.unfamiliarity,
            remark(answer, look_below=self.bundle.look_below),
        )  # fmt: skip

    def _read(self, path: Path) -> np.ndarray:
        from tskd.data import nifti
        from tskd.data.images import read_image

        if path.is_dir() or (path.is_file() and nifti.is_nifti(path)):
            what = "is a folder" if path.is_dir() else "holds a volume"
            raise UserError(
                f"{path}: {what}, and here one image is segmented. Give a slice as an array, or segment it all with "
                f"`tskd predict {self.bundle.folder} {path} --out masks`."
            )
        return read_image(path, intensity=self.bundle.window)

    def _taken(self, image: Any) -> np.ndarray:
        if isinstance(image, list | tuple):
            raise UserError("predict segments one image at a time: [model.predict(one) for one in images]")
        return as_pixels(image, self.bundle.window)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<details open><summary>Model card</summary><pre>{escape(self.card)}</pre></details>"


def load(folder: str | Path) -> Model:
    """Return the model of a bundle's folder or of a run's output folder; its files are verified first.

    Raises UserError where there is none, or a file is not the one that was exported.
    """
    return Model(open_bundle(Path(folder)))
