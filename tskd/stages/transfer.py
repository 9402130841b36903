"""Transfer: choose the images that the student learns from without labels."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tskd.config import TransferConfig
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import RECORDS, TransferRecord
from tskd.errors import UserError

VERSION = 1


def build_transfer(config: TransferConfig, prepared: Prepared, folder: Path) -> dict[str, Any]:
    """Write the list of transfer images: unlabelled training images first, then the labelled ones; never val or test."""
    rows = np.concatenate([prepared.rows("unlabelled"), prepared.rows("train")])
    wanted = len(rows) if config.real is None else config.real
    if wanted > len(rows):
        raise UserError(f"transfer.real: {wanted} images are asked for, the training data has {len(rows)}")
    records = [TransferRecord(prepared.records[row].id, "real", int(row)) for row in rows[:wanted]]
    if not records:
        raise UserError(
            "the transfer set is empty: set transfer.real, transfer.synthetic or transfer.augmented above 0"
        )
    (folder / RECORDS).write_text("".join(json.dumps(asdict(record)) + "\n" for record in records), encoding="utf-8")
    return {"real": len(records), "synthetic": 0, "augmented": 0}
