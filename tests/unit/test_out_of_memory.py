"""Too little memory ends a stage with one message that names settings, and costs nothing that was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.made_up import make_prepared, make_transfer
from tests.unit.test_fit import EVERY_STEP, assert_same, selected, step, training, uninterrupted
from tskd.engine import fit
from tskd.engine.checkpoints import load_checkpoint
from tskd.engine.out_of_memory import memory_explained, training_remedies
from tskd.errors import RunFailed
from tskd.recipe.schema import AugmentConfig, DiffusionConfig, EvaluateConfig, MocoConfig, TeacherConfig, TrainConfig
from tskd.stages.cache import build_cache, plan_cache
from tskd.stages.evaluate import evaluate
from tskd.stages.pseudo_masks import predict_masks
from tskd.stages.samples import draw_samples
from tskd.types import Batch, SegmentationOutput

CPU = torch.device("cpu")


def full_at(step_number: int, error: RuntimeError) -> object:
    def step_without_memory(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        if batch.names[0] == f"image{step_number}-0":
            raise error
        return step(module, batch)

    return step_without_memory


def test_a_training_that_runs_out_of_memory_keeps_its_state_and_says_what_helps(tmp_path: Path) -> None:
    work = replace(training(), step=full_at(9, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")))
    with pytest.raises(RunFailed, match=r"(?s)test: out of memory .*accumulate=2 .*precision=bf16.*batch_size"):
        fit(work, tmp_path, EVERY_STEP)
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["result"]["steps"] == 8
    mended = training()
    fit(mended, tmp_path, EVERY_STEP)
    assert_same(selected(mended), uninterrupted(mended.settings, tmp_path / "whole")[0])


def test_a_batch_that_does_not_fit_on_the_device_is_out_of_memory_too(tmp_path: Path) -> None:
    def batches(step: int, part: int, parts: int) -> Batch:
        raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(RunFailed, match="test: out of memory on the processor"):
        fit(replace(training(), batches=batches), tmp_path, EVERY_STEP)


@pytest.mark.parametrize(
    "text",
    ["MPS backend out of memory", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
     "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"],
)  # fmt: skip
def test_every_allocators_words_are_known(text: str) -> None:
    with pytest.raises(RunFailed, match="buy a larger one"), memory_explained("test", CPU, ["buy a larger one"]):
        raise RuntimeError(text)


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes differ") as caught, memory_explained("test", CPU, []):
        raise RuntimeError("shapes differ")
    assert type(caught.value) is RuntimeError


def remedies(settings: TrainConfig, precision: str = "32-true") -> str:
    return "\n".join(training_remedies(settings, replace(EVERY_STEP, precision=precision)))


def test_remedies_are_settings_that_there_are_and_that_are_not_used_yet() -> None:
    teacher = TeacherConfig(batch_size=12, accumulate=4)
    assert "teacher.gradient_checkpointing=true" in remedies(teacher)
    assert "teacher.accumulate=6" in remedies(teacher), "the next number of equal parts"
    assert "teacher.image_size" in remedies(teacher)
    used = teacher.model_copy(update={"gradient_checkpointing": True, "accumulate": 12})
    assert "checkpointing" not in remedies(used)
    assert "accumulate" not in remedies(used)
    assert "engine.precision" not in remedies(used, "16-mixed")
    assert "diffusion.gradient_checkpointing" in remedies(DiffusionConfig())
    moco = remedies(MocoConfig())
    assert "accumulate" not in moco, "it is refused there"
    assert "moco_v3.batch_size" in moco
    assert "data.image_size" in moco


class Full(nn.Module):
    """A network whose device holds fewer images than it is asked for at once."""

    feature_dims = (3,)

    def __init__(self, held: int) -> None:
        super().__init__()
        self.weight, self.held = nn.Parameter(torch.ones(())), held

    def forward(self, images: Tensor) -> SegmentationOutput:
        if len(images) > self.held:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return SegmentationOutput((images[..., ::4, ::4],), images[:, :1] * self.weight)


def test_every_stage_that_asks_a_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = make_prepared(tmp_path / "prepared", size=32)
    transfer = make_transfer(tmp_path / "transfer", prepared)
    layout = plan_cache(Full(1), Full(1), transfer, image_size=32, views=1, seed=0)
    with pytest.raises(RunFailed, match=r"(?s)cache: out of memory.*teacher.image_size"):
        build_cache(Full(1), transfer, layout, AugmentConfig(), tmp_path, runtime=EVERY_STEP)
    with pytest.raises(RunFailed, match=r"(?s)pseudo-labels: out of memory.*teacher.image_size"):
        predict_masks(Full(1), transfer, tmp_path, image_size=32, runtime=EVERY_STEP)
    monkeypatch.setattr(type(prepared), "native_image", lambda self, row: self.images[row])
    with pytest.raises(RunFailed, match=r"(?s)evaluate student: out of memory.*engine.accelerator=cpu"):
        evaluate(EvaluateConfig(), Full(0), prepared, tmp_path, title="student", device=CPU)


def test_samples_that_were_drawn_before_the_memory_ended_are_kept(tmp_path: Path) -> None:
    class Sampler:
        image_size, at_once = 8, 2

        def __call__(self, numbers: Sequence[int]) -> np.ndarray:
            if numbers[0] > 0:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return np.zeros((len(numbers), 8, 8, 3), np.uint8)

    with pytest.raises(RunFailed, match=r"(?s)samples: out of memory.*diffusion.image_size"):
        draw_samples(range(4), Sampler(), tmp_path, runtime=EVERY_STEP)
    assert len(list(tmp_path.glob("*/samples-*.npy"))) == 1
