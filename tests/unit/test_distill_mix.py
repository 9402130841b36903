"""Cut-mix in distillation: the student's view and all of the teacher's answers are mixed alike."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tskd.recipe.schema import DistillConfig
from tskd.stages.distill import distillation_step, draw_mix
from tskd.types import Batch, SegmentationOutput


class Mirror(nn.Module):
    """A student that answers with what it is shown: its features are the view on a grid, its logits the view."""

    def forward(self, images: Tensor) -> tuple[Tensor, SegmentationOutput]:
        features = F.avg_pool2d(images, 4)
        return features, SegmentationOutput((features,), images[:, :1] * 8)


def views() -> Tensor:
    """One colour an image: a feature cell that a box's edge cuts is the only one that can be wrong."""
    return torch.rand(6, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 64, 64)


def ask(batch: Batch) -> SegmentationOutput:
    """Answers for the images before they are mixed, as a cache does."""
    return Mirror()(batch.images)[1]


def test_mixed_answers_are_those_of_the_mixed_view() -> None:
    """A view that is mixed and an answer that is not, or an answer of another image."""
    config = DistillConfig(mix=1.0, decoder_loss="mse", encoder_loss="cosine")
    torch.manual_seed(3)
    mixed = distillation_step(config, ask, 0)(Mirror(), Batch(views(), views()))
    assert mixed["decoder_loss"].item() == pytest.approx(0, abs=1e-6)
    other = distillation_step(config, ask, 0)(Mirror(), Batch(views().flip(0), views()))
    assert other["decoder_loss"].item() > 0.01
    assert mixed["encoder_loss"].item() < other["encoder_loss"].item() / 4  # but for cells that a box's edge cuts


def test_a_share_of_the_images_has_a_box_of_the_next() -> None:
    torch.manual_seed(0)
    planes = torch.arange(1000.0)[:, None, None, None].expand(-1, 1, 16, 16)
    mixed = draw_mix(1000, 0.3, torch.device("cpu"))(planes)
    changed = (mixed != planes).flatten(1)
    assert changed.any(dim=1).float().mean().item() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(mixed[changed.view_as(mixed)], planes.roll(1, 0)[changed.view_as(planes)])


def test_without_a_share_nothing_is_drawn() -> None:
    """A draw would change the numbers of trainings that ask for no mixing."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(draw_mix(6, 0.0, torch.device("cpu"))(views()), views())
    assert torch.equal(torch.get_rng_state(), before)


def test_both_losses_have_their_weight_and_the_decoders_its_temperature() -> None:
    settings: dict[str, object] = {"decoder_loss": "mse", "encoder_loss": "cosine"}
    batch = Batch(views().flip(0), views())
    plain, weighed = (
        distillation_step(DistillConfig(**settings, **more), ask, 0)(Mirror(), batch)
        for more in ({"temperature": 1.0}, {"encoder_weight": 3.0, "decoder_weight": 0.5, "temperature": 2.0})
    )
    assert weighed["encoder_loss"] == plain["encoder_loss"]
    assert weighed["decoder_loss"].item() == pytest.approx(plain["decoder_loss"].item() / 4)
    expected = 3 * weighed["encoder_loss"] + 0.5 * weighed["decoder_loss"]
    assert weighed["loss"].item() == pytest.approx(expected.item())
