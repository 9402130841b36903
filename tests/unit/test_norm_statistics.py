"""Batch norms with the statistics of the test images: by hand, for whom, and that nothing else of a model changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from tests.made_up import make_prepared
from tskd.data.prepared import Part, Prepared, native_path
from tskd.recipe.schema import NAMING, EvaluateConfig
from tskd.stages.evaluate import evaluate
from tskd.stages.evaluation_files import read_prediction
from tskd.stages.norm_statistics import adapt_norms
from tskd.types import SegmentationOutput

CPU = torch.device("cpu")
SIZE = 32
COUNTS: Mapping[Part, int] = {"train": 2, "val": 2, "unlabelled": 2, "test": 5}


class Normed(nn.Module):
    """A batch norm on the image, then a threshold; ``norm`` False: the threshold alone."""

    def __init__(self, *, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> SegmentationOutput:
        seen = self.drop(self.norm(images))
        return SegmentationOutput((seen,), seen[:, :1])


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return make_prepared(tmp_path / "data", size=SIZE, counts=COUNTS)


def test_means_and_variances_are_those_of_the_test_images(prepared: Prepared) -> None:
    model = Normed().eval()
    said = adapt_norms(model, prepared, CPU)
    values = prepared.images[-5:].astype(np.float64) / 255
    assert isinstance(model.norm, nn.BatchNorm2d)
    assert model.norm.running_mean is not None
    assert model.norm.running_var is not None
    np.testing.assert_allclose(model.norm.running_mean.numpy(), values.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(model.norm.running_var.numpy(), values.var(axis=(0, 1, 2)), rtol=1e-5)
    assert said == ("statistics of 1 batch norms are those of the 5 test images",)
    assert not any(module.training for module in model.modules())


def test_frozen_norms_take_them_too_and_layer_after_layer(prepared: Prepared) -> None:
    """A teacher with adapters keeps its norms frozen. What the second one sees has been through the adapted first."""
    model = nn.Sequential(Normed(), nn.BatchNorm2d(3))
    model.forward = lambda images: model[1](model[0](images).features[0])  # type: ignore[method-assign]
    frozen = freeze_batch_norm_2d(model[0])
    model[0] = frozen
    said = adapt_norms(model.eval(), prepared, CPU)
    values = prepared.images[-5:].astype(np.float64) / 255
    np.testing.assert_allclose(frozen.norm.running_mean.numpy(), values.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(model[1].running_mean.numpy(), 0, atol=1e-4)
    np.testing.assert_allclose(model[1].running_var.numpy(), 1, atol=1e-3)
    assert said[0].startswith("statistics of 2 batch norms")


def test_batches_count_alike(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 images in batches of three and two: the plain mean of both, whatever the momentum was."""
    monkeypatch.setattr("tskd.stages.norm_statistics.ADAPTED_AT_ONCE", 3)
    model = Normed().eval()
    adapt_norms(model, prepared, CPU)
    values = prepared.images[-5:].astype(np.float64) / 255
    of_both = (values[:3].mean(axis=(0, 1, 2)) + values[3:].mean(axis=(0, 1, 2))) / 2
    assert isinstance(model.norm, nn.BatchNorm2d)
    assert model.norm.running_mean is not None
    np.testing.assert_allclose(model.norm.running_mean.numpy(), of_both, rtol=1e-5)


def test_a_network_without_batch_norm_stays_and_that_is_said(prepared: Prepared) -> None:
    assert adapt_norms(Normed(norm=False), prepared, CPU) == (
        "norm_statistics=test changed nothing: the network has no batch norm",
    )


def test_one_test_image_has_no_statistics(tmp_path: Path) -> None:
    alone = make_prepared(tmp_path / "data", size=SIZE, counts={**COUNTS, "test": 1})
    model = Normed().eval()
    assert adapt_norms(model, alone, CPU) == ("norm_statistics=test changed nothing: there is one test image",)
    assert isinstance(model.norm, nn.BatchNorm2d)
    assert model.norm.running_mean is not None
    assert model.norm.running_mean.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("statistics", "seen"), [("stored", 1.0), ("test", 0.5)])
def test_an_evaluation_uses_and_remarks_what_the_settings_say(
    statistics: str, seen: float, prepared: Prepared, tmp_path: Path
) -> None:
    """With stored statistics (mean 0) every pixel is above 0 and so foreground; with the test's about half of them."""
    rows = prepared.rows("test")
    for row in rows:
        native_path(prepared.folder, row, "image").parent.mkdir(exist_ok=True)
        Image.fromarray(np.maximum(prepared.images[row], 1)).save(native_path(prepared.folder, row, "image"))
        Image.fromarray(np.eye(SIZE, dtype=np.uint8)).save(native_path(prepared.folder, row, "mask"))
    config = EvaluateConfig.model_validate({"overlays": 0, "norm_statistics": statistics})
    summary = evaluate(config, Normed(), prepared, tmp_path, title="any", device=CPU)
    assert np.mean([read_prediction(tmp_path, row) > 0 for row in rows]) == pytest.approx(seen, abs=0.2)
    assert ("batch norms" in summary.get("remark", "")) == (statistics == "test")


def test_stored_statistics_are_in_no_name() -> None:
    assert "norm_statistics" not in EvaluateConfig().model_dump(context=NAMING)
    assert EvaluateConfig(norm_statistics="test").model_dump(context=NAMING)["norm_statistics"] == "test"
