"""Equal compute: what is counted, what is left apart, and how many steps it gives."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import SamConfig, SamModel

from tests import published
from tests.made_up import SMALL_VIT
from tskd.artifacts import Artifact, Store
from tskd.experiment.budget import at_most, lasting, student_budget
from tskd.models import flops
from tskd.models.description import NetworkDescription
from tskd.models.flops import count_flops, gflops, inference_flops, training_flops
from tskd.models.registry import build_model
from tskd.models.sam import SamSegmenter
from tskd.models.sam_files import sam_config, under_transformers_names
from tskd.models.timm_segmenter import TimmSegmenter
from tskd.recipe.schema import DistillConfig, FinetuneConfig
from tskd.stages.compute import compute_of
from tskd.stages.distill import encoder_flops
from tskd.types import SegmentationOutput

SIZE, HIDDEN, CLASSES = 16, 5, 2


class TwoLayers(nn.Module):
    """Two 1x1 convolutions with batch norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Conv2d(3, HIDDEN, 1),
            nn.BatchNorm2d(HIDDEN),
            nn.Conv2d(HIDDEN, CLASSES, 1),
        )

    def forward(self, images: Tensor) -> SegmentationOutput:
        features = self.norm(self.first(images))
        return SegmentationOutput((features,), self.second(features))


def test_training_is_counted_as_by_hand() -> None:
    """Forward, gradient of the weights, gradient of the input; the first layer's input needs none."""
    first, second = 3 * HIDDEN * SIZE**2, HIDDEN * CLASSES * SIZE**2
    assert inference_flops(TwoLayers().eval(), SIZE) == 2 * (first + second)
    assert training_flops(TwoLayers(), SIZE) == 2 * (2 * first + 3 * second)


def test_frozen_layers_cost_no_gradient() -> None:
    network = TwoLayers()
    network.first.requires_grad_(False)
    network.norm.requires_grad_(False)
    first, second = 3 * HIDDEN * SIZE**2, HIDDEN * CLASSES * SIZE**2
    assert training_flops(network, SIZE) == 2 * (first + 2 * second)


@pytest.mark.parametrize(("layer", "multiply_adds"), [
    (nn.Conv2d(8, 8, 3, padding=1, groups=8), 8 * 9 * 16**2),
    (nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4), 16 * 2 * 9 * 8**2),
    (nn.ConvTranspose2d(8, 4, 2, stride=2), 8 * 4 * 4 * 16**2),
    (nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8), 8 * 4 * 16**2),
], ids=["depthwise", "grouped, strided", "transposed", "transposed, depthwise"])  # fmt: skip
def test_each_gradient_of_a_convolution_costs_as_much_as_its_answer(layer: nn.Module, multiply_adds: int) -> None:
    """Also where channels do not meet: as dense ones, those of MobileNets and EfficientNets counted six times."""
    planes = torch.zeros(1, 8, 16, 16, requires_grad=True)
    assert count_flops(lambda: layer(planes)) == 2 * multiply_adds
    assert count_flops(lambda: layer(planes).sum().backward()) == 3 * 2 * multiply_adds
    assert count_flops(lambda: layer(planes.detach()).sum().backward()) == 2 * 2 * multiply_adds


def test_counting_changes_neither_network_nor_random_numbers() -> None:
    network = TwoLayers().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    training_flops(network, SIZE)
    inference_flops(network, SIZE)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.training


def _small_sam() -> SamConfig:
    state = published.fill(published.meta_sam(**published.SMALL_SAM))  # type: ignore[arg-type]
    return sam_config(under_transformers_names(state))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "attention": lambda: TimmSegmenter(SMALL_VIT, "detail", classes=2, image_size=32),
    "convolutions": lambda: TimmSegmenter("resnet10t", "pyramid", classes=1, image_size=32),
    "sam": lambda: SamSegmenter(SamModel(_small_sam()), classes=1, image_size=32),
    "constants": lambda: WithConstant(),
}


class WithConstant(TwoLayers):
    """Holds a tensor that is neither parameter nor buffer, as some of timm's networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.full((1, 3, 1, 1), 2.0)

    def forward(self, images: Tensor) -> SegmentationOutput:
        return super().forward(images * self.scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_alone_are_counted_as_numbers_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets and finished runs hold these figures; a meta device, where attention is another operation, has others."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    next(network.parameters()).requires_grad_(False)
    by_numbers = training_flops(network, 32), inference_flops(network.eval(), 32)
    monkeypatch.setattr(flops, "FEW_PIXELS", 0)
    before, state = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    assert (training_flops(network, 32), inference_flops(network.eval(), 32)) == by_numbers
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[k]) for k, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_counting_a_large_size_takes_no_memory() -> None:
    """One plane of features at 16384 px is 5 GB: numbers would not fit beside other work."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first, second = 3 * HIDDEN * 16384**2, HIDDEN * CLASSES * 16384**2
    assert training_flops(TwoLayers(), 16384) == 2 * (2 * first + 3 * second)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_the_encoder_alone_costs_less_than_the_student() -> None:
    arguments = {"backbone": "vit_tiny_patch16_224", "decoder": "detail"}
    student = build_model(NetworkDescription("timm", arguments, ("one",), 64))
    whole = training_flops(student, 64)
    student.decoder.requires_grad_(False)
    assert 0.5 * whole < encoder_flops(student, 64) < whole


def test_the_budget_is_distillation_and_fine_tuning_together() -> None:
    budget = student_budget(
        DistillConfig(steps=100, batch_size=8), FinetuneConfig(steps=30, batch_size=4), flops_per_image=7
    )
    assert (budget.flops_per_image, budget.pretraining, budget.total) == (7, 100 * 8 * 7, 100 * 8 * 7 + 30 * 4 * 7)


@pytest.mark.parametrize(("operations", "expected"), [(99, 9), (100, 10), (109, 10), (9, 1)])
def test_steps_are_whole_within_the_budget_and_at_least_one(operations: int, expected: int) -> None:
    config = FinetuneConfig(steps=7, batch_size=5)
    assert lasting(config, operations, 2).steps == expected
    assert at_most(config, operations, 2).steps == min(expected, 7)


def test_a_thousand_million_is_one() -> None:
    assert gflops(2_500_000_000) == 2.5


class Shelf:
    """Makes artifacts whose content and metrics are given."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)

    def put(self, stage: str, content: str, metrics: Mapping[str, Any], **inputs: Artifact | str) -> Artifact:
        def make(folder: Path) -> Mapping[str, Any]:
            (folder / "weights").write_text(content)
            return metrics

        digests = {name: value if isinstance(value, str) else value.digest for name, value in inputs.items()}
        return self.store.build(stage, make, config={"content": content}, inputs=digests, seed=0, version=1)

    def cost(self, model: Artifact) -> tuple[float, float]:
        return tuple(compute_of(model, self.store.used.values()))  # type: ignore[return-value]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_a_model_costs_what_led_to_it_and_nothing_else(shelf: Shelf) -> None:
    data = shelf.put("prepare", "data", {"images": 3})
    teacher = shelf.put("teacher", "teacher", {"teacher_gflops": 100.0}, data=data, weights="sha256 of a file")
    transfer = shelf.put("transfer", "list", {}, data=data, teacher=teacher)
    start = shelf.put(
        "distill", "start", {"student_gflops": 10.0, "teacher_gflops": 5.0}, teacher=teacher, transfer=transfer
    )
    final = shelf.put("finetune", "final", {"student_gflops": 3.0}, start=start, data=data)
    alone = shelf.put("pretrain", "mae", {"student_gflops": 9.0}, transfer=transfer, data=data)
    baseline = shelf.put("finetune", "baseline", {"student_gflops": 3.0}, start=alone, data=data)
    assert shelf.cost(teacher) == (0.0, 100.0)
    assert shelf.cost(start) == (10.0, 105.0)
    assert shelf.cost(final) == (13.0, 105.0)
    assert shelf.cost(baseline) == (12.0, 0.0), "the transfer set is every method's: who judged it is no cost of it"


def test_a_fine_tuning_that_kept_its_start_costs_both(shelf: Shelf) -> None:
    """Its digest is the start's then: neither may be taken for the other."""
    start = shelf.put("distill", "same", {"student_gflops": 10.0})
    kept = shelf.put("finetune", "same", {"student_gflops": 3.0}, start=start)
    other = shelf.put("finetune", "other", {"student_gflops": 4.0}, start=start)
    assert start.digest == kept.digest
    assert shelf.cost(kept) == (13.0, 0.0)
    assert shelf.cost(other) == (14.0, 0.0)
