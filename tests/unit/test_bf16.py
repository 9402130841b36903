"""bf16 on a processor goes round the operators that are slow in it, and changes nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tskd.engine import Runtime, Training, bf16, fit, open_runtime
from tskd.engine.bf16 import slow_operators_avoided
from tskd.models.timm_segmenter import TimmSegmenter
from tskd.recipe.schema import EngineConfig, PrecisionName, TrainConfig
from tskd.types import Batch

SIDE = 64


def runtime(precision: PrecisionName = "bf16-mixed") -> Runtime:
    return open_runtime(EngineConfig(accelerator="cpu", precision=precision))


def network(backbone: str = "test_efficientnet", decoder: str = "unet") -> TimmSegmenter:
    torch.manual_seed(0)
    return TimmSegmenter(backbone, decoder, classes=1, image_size=SIDE).train()


def convolutions(model: nn.Module, *, depthwise: bool) -> list[nn.Conv2d]:
    found = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    return [one for one in found if (one.groups > 1) is depthwise]


def attentions(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if hasattr(part, "fused_attn")]


@contextmanager
def noted(parts: list[nn.Conv2d]) -> Iterator[set[torch.dtype]]:
    """Note the types that these parts answer in."""
    types: set[torch.dtype] = set()
    hooks = [one.register_forward_hook(lambda part, given, answer: types.add(answer.dtype)) for one in parts]
    yield types
    for hook in hooks:
        hook.remove()


def gradients(model: TimmSegmenter, used: Runtime) -> Tensor:
    """Return all gradients of one step, in one row."""
    model.zero_grad()
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with slow_operators_avoided(model, used):
        with used.fabric.autocast():
            answer = model(images).logits
        (answer.float() * images[:, :1]).mean().backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def test_depthwise_convolutions_work_in_float32_and_dense_ones_do_not() -> None:
    model = network()
    with noted(convolutions(model, depthwise=True)) as depthwise, noted(convolutions(model, depthwise=False)) as dense:
        gradients(model, runtime())
    assert (depthwise, dense) == ({torch.float32}, {torch.bfloat16})


@pytest.mark.parametrize(("backbone", "decoder"), [("test_efficientnet", "unet"), ("test_vit", "detail")])
def test_gradients_are_as_near_to_those_of_float32_as_bf16_is(
    backbone: str, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red where the way round computes something else, such as attention without its scale."""
    model = network(backbone, decoder)
    if decoder == "detail":
        model.decoder.drop = nn.Identity()
    exact, ours = gradients(model, runtime("32-true")), gradients(model, runtime())
    monkeypatch.setattr(bf16, "_is_depthwise", lambda convolution: False)
    monkeypatch.setattr(bf16, "MOST_TOKENS", 0)
    plain = gradients(model, runtime())
    assert not torch.equal(ours, plain)
    assert torch.linalg.norm(ours - exact) < 1.2 * torch.linalg.norm(plain - exact)


def test_attention_over_few_tokens_is_not_fused_and_over_many_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("test_vit", "detail")
    parts = attentions(model)
    with slow_operators_avoided(model, runtime()):
        assert [part.fused_attn for part in parts] == [False] * len(parts)
    monkeypatch.setattr(bf16, "MOST_TOKENS", 3)
    with slow_operators_avoided(model, runtime()):
        assert [part.fused_attn for part in parts] == [True] * len(parts)


def test_afterwards_all_is_as_before_even_where_a_step_failed() -> None:
    for model in (network(), network("test_vit", "detail")):
        with pytest.raises(ZeroDivisionError), slow_operators_avoided(model, runtime()):
            raise ZeroDivisionError
        assert all(part.fused_attn for part in attentions(model))
        with noted(convolutions(model, depthwise=True)) as types, runtime().fabric.autocast():
            model(torch.rand(1, 3, SIDE, SIDE))
        assert types <= {torch.bfloat16}


def test_float32_stays_as_it_is() -> None:
    model = network("test_vit", "detail")
    with slow_operators_avoided(model, runtime("32-true")):
        assert all(part.fused_attn for part in attentions(model))


def test_a_training_uses_it(tmp_path: Path) -> None:
    module = nn.Conv2d(4, 4, 3, groups=4)
    batch = Batch(torch.rand(1, 4, 8, 8), torch.zeros(1), names=("one",))
    training = Training(
        "test",
        module,
        lambda module, batch: {"loss": module(batch.images).square().mean()},
        lambda step, part, parts: batch,
        TrainConfig(steps=1, batch_size=1, lr=0.1),
        seed=0,
    )
    with noted([module]) as types:
        fit(training, tmp_path, runtime())
    assert types == {torch.float32}
