"""bf16 on a processor goes round the operators that are slow in it, and changes nothing else."""

from __future__ import annotations

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


def attentions(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if hasattr(part, "fused_attn")]


def gradients(model: TimmSegmenter, used: Runtime) -> Tensor:
    """Return all gradients of one step, in one row."""
    model.zero_grad()
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with slow_operators_avoided(model, used):
        with used.fabric.autocast():
            answer = model(images).logits
        (answer.float() * images[:, :1]).mean().backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def test_depthwise_convolutions_are_taken_out_of_autocast_and_no_others() -> None:
    model = network()
    with slow_operators_avoided(model, runtime()):
        taken = [part for part in model.modules() if "forward" in vars(part)]
    assert taken == [part for part in model.modules() if isinstance(part, nn.Conv2d) and part.groups > 1] != []


def test_a_depthwise_convolution_computes_what_float32_does() -> None:
    """Red where autocast reaches it, in the answer or on the way back."""
    convolution = nn.Conv2d(8, 8, 5, padding=2, groups=8)
    planes = torch.rand(2, 8, 9, 9, requires_grad=True)

    def results() -> tuple[Tensor, ...]:
        with runtime().fabric.autocast():
            answer = convolution(planes)
        return answer, *torch.autograd.grad(answer.square().sum(), [planes, convolution.weight])

    expected = convolution(planes)
    gradients = torch.autograd.grad(expected.square().sum(), [planes, convolution.weight])
    with slow_operators_avoided(convolution, runtime()):
        found = results()
    torch.testing.assert_close(found, (expected, *gradients))
    assert not torch.equal(results()[1], gradients[0])


def test_attention_is_as_near_to_float32_as_the_fused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red where the products leave the scale out; that changes most where attention is sharp, as after training."""
    model = network("test_vit", "detail")
    model.decoder.drop = nn.Identity()
    with torch.no_grad():
        for part in attentions(model):
            part.qkv.weight[: 2 * len(part.qkv.weight) // 3] *= 8
    exact, ours = gradients(model, runtime("32-true")), gradients(model, runtime())
    monkeypatch.setattr(bf16, "MOST_TOKENS", 0)
    fused = gradients(model, runtime())
    assert torch.linalg.norm(ours - exact) < 2 * torch.linalg.norm(fused - exact)


@pytest.mark.parametrize(("most", "fused"), [(512, False), (3, True)])
def test_attention_over_few_tokens_is_not_fused_and_over_many_it_is(
    most: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bf16, "MOST_TOKENS", most)
    model = network("test_vit", "detail")
    seen = []
    hooks = [
        part.register_forward_hook(lambda part, given, _: seen.append(part.fused_attn)) for part in attentions(model)
    ]
    gradients(model, runtime())
    assert seen == [fused] * len(hooks) != []


def test_afterwards_all_is_as_before_even_where_a_step_failed() -> None:
    for model in (network(), network("test_vit", "detail")):
        with (
            pytest.raises(ZeroDivisionError),
            slow_operators_avoided(model, runtime()),
            slow_operators_avoided(model, runtime()),
        ):
            raise ZeroDivisionError
        gradients(model, runtime("32-true"))
        assert all(part.fused_attn for part in attentions(model))
        assert not any("forward" in vars(part) for part in model.modules())


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
    taken = []
    module.register_forward_hook(lambda part, given, answer: taken.append("forward" in vars(part)))
    fit(training, tmp_path, runtime())
    assert taken == [True]
