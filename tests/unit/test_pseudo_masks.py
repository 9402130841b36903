"""Pseudo-labels: the teacher's own prediction for each transfer image, and the experts' masks where there are some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.made_up import make_prepared, make_transfer
from tskd.data.transfer_set import TransferSet
from tskd.engine import open_runtime
from tskd.engine.batches import to_images
from tskd.recipe.schema import EngineConfig
from tskd.stages.pseudo_masks import predict_masks
from tskd.stages.transfer_masks import labels_and_pseudo_labels, pseudo_labels
from tskd.types import SegmentationOutput

SIZE = 32
RUNTIME = open_runtime(EngineConfig(accelerator="cpu"))


class Bright(nn.Module):
    """A teacher that takes red pixels above a threshold for the structure."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.5))

    def forward(self, images: Tensor) -> SegmentationOutput:
        return SegmentationOutput((images,), images[:, :1] - self.threshold)


@pytest.fixture(scope="module")
def transfer(tmp_path_factory: pytest.TempPathFactory) -> TransferSet:
    folder = tmp_path_factory.mktemp("pseudo")
    return make_transfer(folder / "transfer", make_prepared(folder / "prepared", size=SIZE))


@pytest.fixture(scope="module")
def masks(transfer: TransferSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    metrics = predict_masks(Bright(), transfer, folder, image_size=SIZE, runtime=RUNTIME)
    assert metrics["images"] == len(transfer.records)
    return folder


def test_each_image_gets_the_teachers_prediction_for_it(transfer: TransferSet, masks: Path) -> None:
    labelled = pseudo_labels(transfer, masks)
    pixels = labelled.images[np.arange(len(labelled.images))]
    assert labelled.names == transfer.names
    assert labelled.masks.dtype == np.uint8
    assert np.array_equal(labelled.masks, (to_images(pixels)[:, 0] > 0.5).numpy())
    assert 0.02 < labelled.masks.mean() < 0.98


def test_labels_of_experts_are_not_replaced_and_no_image_comes_twice(transfer: TransferSet, masks: Path) -> None:
    prepared = transfer.prepared
    labelled = labels_and_pseudo_labels(prepared, transfer, masks)
    rows = prepared.rows("train")
    assert len(set(labelled.names)) == len(labelled.names) == len(labelled.masks) == len(labelled.images)
    assert set(labelled.names) == set(transfer.names)
    assert labelled.names[: len(rows)] == list(prepared.names(rows))
    assert np.array_equal(labelled.masks[: len(rows)], prepared.masks[rows])
    pixels = labelled.images[np.arange(len(labelled.images))]
    assert np.array_equal(pixels[: len(rows)], prepared.images[rows])
    assert np.array_equal(labelled.masks[len(rows) :], (to_images(pixels)[len(rows) :, 0] > 0.5).numpy())
