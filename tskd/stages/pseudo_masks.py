"""Pseudo-masks: the adapted teacher's hard masks on the transfer set, its answer taken for the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tskd.artifacts import Artifact
from tskd.console import progress
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import TransferSet
from tskd.engine import Runtime
from tskd.engine.batches import to_images
from tskd.engine.out_of_memory import inference_remedies, memory_explained
from tskd.losses.classes import hard_prediction
from tskd.losses.distance import match_size
from tskd.models.flops import gflops, inference_flops
from tskd.models.registry import load_model
from tskd.stages.shown import as_input
from tskd.stages.transfer_masks import MASKS
from tskd.stages.workbench import Workbench

VERSION = 2
_AT_ONCE = 8


def build(bench: Workbench, teacher: Artifact, transfer: Artifact, data: Artifact, shown: Artifact) -> Artifact:
    """Return an adapted teacher's hard masks on a transfer set; ``shown``: the prepared ``data`` at its own size."""
    size = Prepared(data.path).image_size
    return bench.build(
        "pseudo_masks",
        lambda folder: predict_masks(
            load_model(teacher.path), TransferSet(transfer.path, Prepared(shown.path)), folder,
            image_size=size, runtime=bench.runtime,
        ),
        config={"precision": bench.precision},
        inputs={
            "data": data.digest, "transfer": transfer.digest, **as_input(shown, data), "teacher": teacher.digest
        },
        version=VERSION,
    )  # fmt: skip


def predict_masks(
    teacher: nn.Module, transfer: TransferSet, folder: Path, *, image_size: int, runtime: Runtime
) -> dict[str, Any]:
    """Write the teacher's prediction for every transfer image as it sees it, (N, S, S) uint8 class index where S is
    ``image_size``."""
    images, device = transfer.images, runtime.fabric.device
    flops = inference_flops(teacher.eval(), images.shape[1])
    teacher.to(device)
    size = torch.Size((image_size, image_size))
    masks = np.empty((len(images), *size), np.uint8)
    explained = memory_explained("pseudo-labels", device, inference_remedies("teacher.image_size", runtime))
    with explained, progress("pseudo-labels: teacher", len(images)) as advance:
        for start in range(0, len(images), _AT_ONCE):
            rows = np.arange(start, min(start + _AT_ONCE, len(images)))
            with torch.inference_mode(), runtime.fabric.autocast():
                logits = teacher(to_images(images[rows]).to(device)).logits
            masks[rows] = hard_prediction(match_size(logits.float(), size)).cpu().numpy()
            advance(int(rows[-1]) + 1)
    np.save(folder / MASKS, masks)
    return {"images": len(images), "teacher_gflops": gflops(len(images) * flops)}
