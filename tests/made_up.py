"""Small things that several tests train: phantoms as the stages leave them, and a vision transformer of seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer, vit_tiny_patch16_224

from tskd.data.phantoms import draw_phantom
from tskd.data.prepared import DATASET, IMAGES, MASKS, PARTS, RECORDS, Part, Prepared
from tskd.data.transfer_set import TransferRecord, TransferSet, write_records

SMALL_VIT = "vit_made_up_patch8"
"""Backbone of a tenth of ViT-Tiny's compute: 4 blocks, 64 wide, patches of 8 pixels."""
COUNTS: Mapping[Part, int] = {"train": 4, "val": 2, "unlabelled": 6, "test": 2}


@register_model
def vit_made_up_patch8(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    """Build what :data:`SMALL_VIT` names; timm and the recipe know it wherever this module is imported."""
    small = {"patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2}
    return vit_tiny_patch16_224(pretrained, **{**small, **settings})


def make_prepared(
    folder: Path, *, size: int, counts: Mapping[Part, int] = COUNTS, family: str = "dermoscopy"
) -> Prepared:
    """Write phantoms of one class, each a case of its own; masks for train and val."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [(part, number) for part in PARTS for number in range(counts[part])]
    drawn = [draw_phantom(family, number, size=size, seed=3) for number in range(len(names))]
    np.save(folder / IMAGES, np.stack([phantom.image for phantom in drawn]))
    labelled = counts["train"] + counts["val"]
    np.save(folder / MASKS, np.stack([(phantom.mask > 0).astype(np.uint8) for phantom in drawn[:labelled]]))
    square = {"height": size, "width": size, "spacing": None}
    records = [{"id": f"{part}{k}", "case": f"{part} case {k}", "part": part, **square} for part, k in names]
    (folder / RECORDS).write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / DATASET).write_text(json.dumps({"name": "made up", "classes": ["lesion"]}))
    return Prepared(folder)


def make_transfer(folder: Path, prepared: Prepared) -> TransferSet:
    """Write a transfer set of the real images: unlabelled ones, then the labelled training images."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [*prepared.rows("unlabelled"), *prepared.rows("train")]
    write_records(folder, [TransferRecord(prepared.records[row].id, "real", int(row)) for row in rows])
    return TransferSet(folder, prepared)
