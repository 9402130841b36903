"""Pseudo-labels: the adapted teacher's hard masks on the transfer set, and what is trained on them.

It is the simple thing a user would try: no features, no probabilities, the teacher's answer taken for the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tskd.artifacts import Artifact, Builder
from tskd.config import DistillConfig
from tskd.console import progress
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import TransferImages, TransferRecord, TransferSet
from tskd.engine import Runtime, Training, fit
from tskd.engine.batches import to_images
from tskd.engine.out_of_memory import inference_remedies, memory_explained
from tskd.losses.classes import hard_prediction
from tskd.losses.distance import match_size
from tskd.models.flops import gflops, inference_flops, training_flops
from tskd.models.registry import STUDENT_FILE, build_model, load_model, save_model
from tskd.seeding import derive
from tskd.stages.supervised import Labelled, label_step, labelled_batches, training_labels, training_metrics

VERSION = 2
MASKS = "masks.npy"
UNUSED_SETTINGS = frozenset(
    {"encoder_loss", "decoder_loss", "encoder_weight", "decoder_weight", "temperature", "cache", "views"}
)
"""Of ``distill``: a student of hard masks knows none of them."""
_AT_ONCE = 8


def build_masks(
    store: Builder,
    teacher: Artifact,
    transfer: TransferSet,
    inputs: Mapping[str, str],
    *,
    image_size: int,
    seed: int,
    runtime: Runtime,
) -> Artifact:
    """Return the artifact of an adapted teacher's hard masks on a transfer set as it sees it, at the student's
    ``image_size``; ``inputs``: digests of the data and the transfer set."""
    return store.build(
        "pseudo_masks",
        lambda folder: predict_masks(
            load_model(teacher.path), transfer, folder, image_size=image_size, runtime=runtime
        ),
        config={"precision": runtime.precision},
        inputs={**inputs, "teacher": teacher.digest},
        seed=seed,
        version=VERSION,
    )


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


def pseudo_labels(transfer: TransferSet, masks: Path) -> Labelled:
    """Return the transfer set with the teacher's masks, read from the folder of :func:`predict_masks`."""
    return Labelled(transfer.images, np.load(masks / MASKS, mmap_mode="r"), transfer.names)


def labels_and_pseudo_labels(prepared: Prepared, transfer: TransferSet, masks: Path) -> Labelled:
    """Return the labelled training images with their own masks, then the other transfer images with the teacher's."""
    true, pseudo = training_labels(prepared), pseudo_labels(transfer, masks)
    rows = prepared.rows("train").tolist()
    known = [TransferRecord(name, "real", row) for name, row in zip(true.names, rows, strict=True)]
    others = [k for k, record in enumerate(transfer.records) if not (record.origin == "real" and record.row in rows)]
    records = [*known, *(transfer.records[k] for k in others)]
    return Labelled(
        images=TransferImages(transfer, records),
        masks=np.concatenate([true.masks, pseudo.masks[others]]),
        names=[record.id for record in records],
    )


def learn_pseudo_labels(
    config: DistillConfig,
    description: Mapping[str, Any],
    labelled: Labelled,
    folder: Path,
    *,
    seed: int,
    runtime: Runtime,
) -> dict[str, Any]:
    """Train a student on pseudo-labels, for as long and in the way distillation would; save it."""
    torch.manual_seed(derive(seed, "student"))
    student = build_model(description)
    flops = training_flops(student, description["image_size"])
    batches = labelled_batches(
        labelled, description["classes"], config, config.augment, derive(seed, "transfer batches")
    )
    training = Training("pseudo-labels", student, label_step, batches, config, seed)
    result = fit(training, folder, runtime)
    if runtime.fabric.is_global_zero:
        save_model(folder, student, description, file=STUDENT_FILE)
    return training_metrics(result, student_gflops=gflops(result.steps * config.batch_size * flops))
