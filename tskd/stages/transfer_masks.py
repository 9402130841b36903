"""The transfer set with a teacher's hard masks, as images to learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tskd.data.prepared import Prepared
from tskd.data.transfer_set import TransferImages, TransferRecord, TransferSet
from tskd.stages.label_training import Labelled, training_labels

MASKS = "masks.npy"


def pseudo_labels(transfer: TransferSet, masks: Path) -> Labelled:
    """Return the transfer set with the teacher's masks, read from the folder of :func:`predict_masks`."""
    return Labelled(transfer.images, np.load(masks / MASKS, mmap_mode="r"), transfer.names)


def labels_and_pseudo_labels(prepared: Prepared, transfer: TransferSet, masks: Path) -> Labelled:
    """Return the labelled training images with their own masks, then the other transfer images with the teacher's."""
    true, pseudo = training_labels(prepared), pseudo_labels(transfer, masks)
    rows = prepared.rows("train").tolist()
    known = [TransferRecord(name, "real", row) for name, row in zip(true.names, rows, strict=True)]
    labelled = {("real", row) for row in rows}
    others = [k for k, record in enumerate(transfer.records) if (record.origin, record.row) not in labelled]
    records = [*known, *(transfer.records[k] for k in others)]
    return Labelled(
        images=TransferImages(transfer, records),
        masks=np.concatenate([true.masks, pseudo.masks[others]]),
        names=[record.id for record in records],
    )
