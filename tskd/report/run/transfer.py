"""Transfer sets on a page: what is in them, what their synthetic images are worth, and what they look like."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tskd.artifacts import Artifact, find_damage
from tskd.console import counted
from tskd.data.prepared import Prepared, spaced
from tskd.data.transfer_set import GATE, ORIGINS, QUALITY, SAMPLE_SHEET, images_path, read_sample
from tskd.metrics.intervals import interval_text
from tskd.report.blocks import Block, Facts, Picture, Pictures, Points, Section, Table, section
from tskd.report.pictures import Album
from tskd.report.run.folder import RunFolder
from tskd.report.text import NOTHING, number

SHOWN = 6
"""Images of each kind."""
SHEET_SIDE = 720
"""Longer side in pixels of the diffusion model's own sheet of samples."""
SPACES = {"teacher": "teacher's features", "imagenet": "ImageNet features", "pixels": "pixels"}
"""Where images were compared."""


@dataclass(frozen=True)
class TransferView:
    """A transfer set, and what its synthetic images came from and were judged by as far as that is there."""

    artifact: Artifact
    prepared: Prepared
    samples: tuple[Artifact, ...]
    """The blocks of sampled images in their order; none where one of them is gone."""
    diffusion: tuple[Artifact, ...]
    quality: Artifact | None

    @property
    def counts(self) -> dict[str, int]:
        """How many of its images come from where."""
        return {origin: self.artifact.metrics[origin] for origin in ORIGINS if origin in self.artifact.metrics}

    @property
    def was_sampled(self) -> bool:
        """Whether images were sampled for it, be it that none was kept."""
        return (self.artifact.path / GATE).is_file()


def view_transfer(artifact: Artifact, prepared: Prepared, others: Iterable[Artifact]) -> TransferView:
    """Return a transfer set with those of the other artifacts that belong to it."""
    by_digest = {one.digest: one for one in others}
    sources = [digest for name, digest in artifact.manifest["inputs"].items() if name.startswith("samples ")]
    blocks = [by_digest[digest] for digest in sources if digest in by_digest]
    models = dict.fromkeys(digest for block in blocks for digest in block.manifest["inputs"].values())
    diffusion = tuple(by_digest[digest] for digest in models if digest in by_digest)
    whole = len(blocks) == len(sources) and not any(damage for block in blocks for damage in find_damage(block))
    samples = sorted(blocks, key=lambda block: int(block.manifest["config"]["first"])) if whole else []
    judged = (one for one in by_digest.values() if one.manifest["stage"] == "quality" and not any(find_damage(one)))
    quality = next((one for one in judged if one.manifest["inputs"]["transfer"] == artifact.digest), None)
    return TransferView(artifact, prepared, tuple(samples), diffusion, quality)


def transfer_section(run: RunFolder, album: Album) -> Section | None:
    """Origins for every transfer set; quality and pictures where images were made up."""
    found = run.made_by("transfer")
    if not found:
        return None
    view = view_transfer(found[0], run.prepared, run.stages.values())
    what = "image" if view.prepared.tile is None else "tile"
    lead = f"{counted(sum(view.counts.values()), what)} without labels, from which the student learned."
    shares = view.artifact.metrics["shares"]
    rows = tuple((name, str(count), f"{100 * shares[name]:.0f} %") for name, count in view.counts.items())
    blocks = [Table(("origin", f"{what}s", "share"), rows), *synthetic_blocks(view, album)]
    return section("transfer", "Transfer set", lead, blocks)


def synthetic_blocks(view: TransferView, album: Album) -> list[Block | None]:
    """Return what is known of the images that were sampled, and pictures of them; nothing where none were."""
    if not view.was_sampled:
        return []
    found = _read(view.artifact.path / GATE) if view.quality is None else _read(view.quality.path / QUALITY)
    return [
        _gate(found),
        *((_quality_table(found), Points((found["scope"],))) if view.quality else ()),
        _made_up(view, album),
        _training_images(view.prepared, album),
        _copies(view, found["copies"]["found"], album),
        *(_sheet(artifact.path / SAMPLE_SHEET, album) for artifact in view.diffusion),
    ]


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _gate(found: Mapping[str, Any]) -> Facts:
    """Return what the gate against copies did, and where quality was measured the likeness that the paper reports."""
    copies, of_test = found["copies"], found["copies_of_test_images"]
    near = f"{of_test['found']} of {of_test['n']}" if "found" in of_test else of_test["skipped"]
    facts = [
        ("First look", found["collapse"]["message"]),
        ("Copies of a training image, dropped", f"{copies['dropped']} of {copies['n']}"),
        ("As near to a test image as a copy", near),
    ]
    if "pixels" in found:
        likeness = f"{number(found['pixels']['psnr_db'].get('mean'), 1)} dB. {found['pixels']['note']}"
        facts.append(("PSNR to the nearest training image", likeness))
    return Facts(tuple(facts))


def _quality_table(quality: Mapping[str, Any]) -> Table:
    """Return how far the images are from the training images, in each space that they were compared in."""
    spaces = [quality[name] for name in SPACES if "diversity" in quality.get(name, {})]
    titles = [title for name, title in SPACES.items() if quality.get(name) in spaces]
    nearness = (number(space["nearest_training_image"]["ratio_of_medians"], 2) for space in spaces)
    rows = (
        ("KID, synthetic to training images", *(_kid(space, "kid") for space in spaces)),
        ("KID, test to training images", *(_kid(space, "kid_of_test_images") for space in spaces)),
        ("diversity", *(number(space["diversity"]["ratio"], 2) for space in spaces)),
        ("distance to the nearest", *nearness),
    )
    note = (
        "KID: squared distance of two sets with its 95\u00a0% interval, 0 for equal ones; that of the test images "
        "shows what a good value is. Diversity: 1 as diverse as the training images, 0 one image repeated. Distance "
        "to the nearest training image: over that between training images of different cases."
    )
    return Table(("in", *titles), rows, title="Synthetic images against training images", note=note)


def _kid(space: Mapping[str, Any], key: str) -> str:
    kid = space.get(key, {})
    if "mean" not in kid:
        return NOTHING
    return f"{kid['mean']:.4g} ({interval_text(kid['ci95'], '{:.4g}'.format)})".replace("-", "−")


def _made_up(view: TransferView, album: Album) -> Pictures | None:
    if not view.counts["synthetic"]:  # all were copies
        return None
    images = np.load(images_path(view.artifact.path, "synthetic"), mmap_mode="r", allow_pickle=False)
    return _row_of_images(images, np.arange(len(images)), "Synthetic images that were kept", album)


def _training_images(prepared: Prepared, album: Album) -> Pictures | None:
    rows = prepared.rows("train", "unlabelled")
    return _row_of_images(prepared.images, rows, "Training images, for comparison (not their sources)", album)


def _row_of_images(images: np.ndarray, rows: np.ndarray, title: str, album: Album) -> Pictures | None:
    """Return pictures of images spread over all."""
    return _pictures([album.add(np.asarray(images[row]), "") for row in spaced(rows, SHOWN)], title)


def _copies(view: TransferView, found: list[dict[str, Any]], album: Album) -> Pictures | None:
    """Return the nearest copies, each before the training image that it copies.

    The stage's own sheet of copies names the sources, so it is drawn again here.
    """
    if not found or not view.samples:
        return None
    folders, prepared = [block.path for block in view.samples], view.prepared
    row_of = {record.id: row for row, record in enumerate(prepared.records)}
    drawn = []
    for copy in sorted(found, key=lambda one: float(one["distance"]))[: SHOWN // 2]:
        drawn.append(album.add(read_sample(folders, copy["sample"]), f"synthetic, distance {copy['distance']:.3f}"))
        drawn.append(album.add(np.asarray(prepared.images[row_of[copy["source"]]]), "the training image it copies"))
    return _pictures(drawn, f"Dropped as copies: the nearest of {len(found)}")


def _sheet(path: Path, album: Album) -> Pictures | None:
    if not path.is_file():
        return None
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    drawn = [album.add(pixels, "", side=SHEET_SIDE)]
    return _pictures(drawn, "Samples of the diffusion model at the end of its training", large=True)


def _pictures(drawn: list[Picture | None], title: str, *, large: bool = False) -> Pictures | None:
    kept = tuple(picture for picture in drawn if picture is not None)
    return Pictures(kept, title=title, large=large) if kept else None
