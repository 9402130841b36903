"""What is switched off is what the network is said to do without, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.made_up import SMALL_VIT
from tests.unit.report_folders import draw_data, open_prepared
from tskd.artifacts import Artifact, Store
from tskd.data.prepared import Prepared
from tskd.engine import open_runtime
from tskd.metrics import segmentation
from tskd.models.control import DynUNetSegmenter
from tskd.models.description import NetworkDescription
from tskd.models.registry import STUDENT_FILE, build_model, load_model, save_model
from tskd.models.timm_segmenter import TimmSegmenter
from tskd.recipe.schema import EngineConfig, EvaluateConfig
from tskd.stages import ablation
from tskd.stages.ablation import ABLATIONS, ablate
from tskd.stages.evaluate import evaluate
from tskd.stages.norm_statistics import adapt_norms
from tskd.stages.workbench import Workbench

CPU = torch.device("cpu")


class Bright(nn.Module):
    """Calls bright pixels lesion: those of the image, of the first feature, or where both are."""

    def __init__(self, *, image: bool, features: bool) -> None:
        super().__init__()
        self.skips, self.features = image, features

    def forward(self, planes: Tensor, features: Sequence[Tensor], *, skip: bool = True) -> Tensor:
        planes = planes if skip else 0 * planes
        bright = torch.full_like(planes[:, :1], torch.inf)
        if self.skips:
            bright = torch.minimum(bright, planes[:, :1] - 0.3)
        if self.features:
            bright = torch.minimum(bright, nn.functional.interpolate(features[0], planes.shape[-2:]) - 0.3)
        return bright


class Shrunken(nn.Module):
    """An encoder whose feature is the image at a quarter of its size."""

    def forward(self, planes: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool2d(planes[:, :1], 4)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("ablation")
    return Prepared(open_prepared(Store(folder / "artifacts"), draw_data(folder / "data"), 10).path)


def segmenter(*, image: bool, features: bool) -> TimmSegmenter:
    model = TimmSegmenter(SMALL_VIT, "plain", classes=1, image_size=32)
    model.encoder, model.decoder = Shrunken(), Bright(image=image, features=features)
    model.weight = nn.Parameter(torch.zeros(()))
    return model


def dice(model: nn.Module, prepared: Prepared, folder: Path) -> float:
    folder.mkdir()
    found = evaluate(EvaluateConfig(overlays=0), model, prepared, folder, title="any", device=CPU)
    return float(found["dice"])


def test_a_network_that_looks_at_its_skip_alone_does_not_miss_its_features(prepared: Prepared, tmp_path: Path) -> None:
    model = segmenter(image=True, features=False)
    whole, found = dice(model, prepared, tmp_path / "whole"), ablate(model, prepared, device=CPU)
    assert whole > 0.5
    assert found["features_zeroed"] == found["features_of_another_image"] == whole
    assert found["skips_zeroed"] == 0, "an image of the mean grey everywhere shows no lesion"


def test_a_network_without_a_skip_lives_by_its_features(prepared: Prepared, tmp_path: Path) -> None:
    model = segmenter(image=False, features=True)
    whole, found = dice(model, prepared, tmp_path / "whole"), ablate(model, prepared, device=CPU)
    assert whole > 0.5
    assert found["skips_zeroed"] is None
    assert found["features_zeroed"] == 0
    other = found["features_of_another_image"]
    assert other is not None
    assert 0 < other < whole - 0.2, "organs lie elsewhere in another image"


def test_no_distance_is_measured_that_nobody_reads(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances of three more predictions an image, which no one reads."""
    model = segmenter(image=True, features=False)
    expected = ablate(model, prepared, device=CPU)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a distance was measured")

    monkeypatch.setattr(segmentation, "surface_distances", refuse)
    assert ablate(model, prepared, device=CPU) == expected


def test_features_of_another_image_are_of_another_case(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of the image before it: with 8 test images, one a case, the first sees the last."""
    model, rows = segmenter(image=False, features=True), prepared.rows("test")
    looked: list[float] = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda image, features, **rest: (
        looked.append(float(features[0].sum())), decode(image, features, **rest))[1])  # fmt: skip
    ablate(model, prepared, device=CPU)
    kinds = ("features_zeroed", "features_of_another_image")
    zeroed, other = (looked[k :: len(kinds)] for k in range(len(kinds)))
    own = [float(model.encode(_image(prepared, row))[0].sum()) for row in rows]
    assert zeroed == [0.0] * len(rows)
    assert other == pytest.approx([own[-1], *own[:-1]])
    assert len(set(own)) == len(rows), "else the test shows nothing"


def test_the_first_image_sees_another_case_where_the_last_is_of_its_own(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    again, rows = Prepared(prepared.folder), prepared.rows("test")
    records = list(again.records)
    records[rows[-1]] = replace(records[rows[-1]], case=records[rows[0]].case)
    vars(again)["records"] = records  # a cached property
    model, other = segmenter(image=False, features=True), []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda image, features, **rest: (
        other.append(float(features[0].sum())), decode(image, features, **rest))[1])  # fmt: skip
    ablate(model, again, device=CPU)
    own = [float(model.encode(_image(prepared, row))[0].sum()) for row in rows]
    assert other[1::2] == pytest.approx([own[-2], *own[:-1]])


def test_a_network_is_ablated_in_the_state_that_it_is_scored_in(prepared: Prepared, tmp_path: Path) -> None:
    """Batch norms of the test images are a part of the score: red where what the student uses is told without them."""
    torch.manual_seed(0)
    description = NetworkDescription("timm", {"backbone": "resnet10t", "decoder": "pyramid"}, ("lesion",), 32)
    store, data = Store(tmp_path / "artifacts"), Artifact(prepared.folder)

    def save(folder: Path) -> dict[str, Any]:
        save_model(folder, build_model(description), description, file=STUDENT_FILE)
        return {}

    model = store.build("model", save, config={}, inputs={}, seed=0, version=1)
    bench = Workbench(store, 0, open_runtime(EngineConfig(accelerator="cpu")))

    def found(statistics: str) -> Artifact:
        config = EvaluateConfig.model_validate({"norm_statistics": statistics, "overlays": 0})
        return ablation.build(bench, config, data, model)

    stored, adapted = found("stored"), found("test")
    assert stored.path != adapted.path
    network = load_model(model.path)
    adapt_norms(network, prepared, CPU)
    assert dict(adapted.metrics) == ablate(network, prepared, device=CPU) != dict(stored.metrics)


def test_other_networks_have_no_such_parts(prepared: Prepared) -> None:
    unet = DynUNetSegmenter([8, 16, 32], classes=1, image_size=32)
    assert ablate(unet, prepared, device=CPU) == dict.fromkeys(ABLATIONS)


def _image(prepared: Prepared, row: int) -> Any:
    from tskd.engine.batches import to_images

    return to_images(prepared.native_image(row)[None])
