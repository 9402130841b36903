"""Loss, sampling and collapse check: what is drawn, what depends on what, and that a small model learns."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tskd.data.phantoms import draw_phantom
from tskd.engine.batches import to_images
from tskd.errors import UserError
from tskd.models.diffusion import (
    SamplingPlan,
    SchedulerKind,
    TrainingDraw,
    build_scheduler,
    collapse_check,
    denoising_loss,
    draw_training_noise,
    images_at_once,
    sample,
    sampling_timesteps,
    to_uint8,
)
from tskd.models.swin_unet import NULL_LABEL, PRESETS, SwinUNet
from tskd.seeding import torch_generator

SIZE = replace(PRESETS["tiny"], channels=16, heads=(0, 2, 2))
PLAN = SamplingPlan(prediction="v_prediction", schedule="cosine", image_size=16, channels=1, steps=4)


def untrained(num_classes: int = 0) -> SwinUNet:
    """Return a denoiser with random weights in its last layer too: its answers depend on all of its input."""
    torch.manual_seed(0)
    model = SwinUNet(SIZE, image_size=16, channels=1, num_classes=num_classes)
    torch.nn.init.normal_(model.head[2].weight, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def blobs() -> np.ndarray:
    """64 images (16 px) of one soft blob, upper left or lower right, on black."""
    rows, columns = np.mgrid[:16, :16]
    generator = np.random.default_rng(0)
    images = []
    for index in range(64):
        centre = (4.5 if index % 2 else 10.5) + generator.normal(0, 0.5, 2)
        images.append(230 * np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / 8))
    return np.repeat(np.asarray(images)[..., None], 3, axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpmsolver++"])
def test_an_image_depends_on_its_seed_alone(solver: SchedulerKind) -> None:
    model, plan = untrained(), replace(PLAN, solver=solver)
    together = sample(model, plan=plan, seeds=[3, 1, 4, 1, 5])
    alone = torch.cat([sample(model, plan=plan, seeds=[seed]) for seed in (3, 1, 4)])
    assert torch.equal(together[:3], alone)
    assert torch.equal(together[1], together[3])
    assert (together[0] - together[1]).abs().max() > 0.1


def test_more_seeds_than_fit_at_once_are_sampled_in_order() -> None:
    count = images_at_once(16) + 2
    model, plan = untrained(num_classes=2), replace(PLAN, steps=2)
    labels = [index % 2 for index in range(count)]
    samples = sample(model, plan=plan, seeds=range(count), labels=labels)
    assert samples.shape == (count, 1, 16, 16)
    last = sample(model, plan=plan, seeds=[count - 1], labels=labels[-1:])
    assert torch.equal(samples[-1:], last)


def test_bfloat16_sampling_stays_close_to_float32() -> None:
    model = untrained()
    exact, rounded = (sample(model, plan=replace(PLAN, half=half), seeds=[0]) for half in (None, torch.bfloat16))
    assert 0 < (exact - rounded).abs().mean() < 0.02


@pytest.mark.parametrize(("image_size", "count"), [(64, 16), (128, 16), (256, 8), (1024, 1)])
def test_images_at_once_fall_with_their_size(image_size: int, count: int) -> None:
    assert images_at_once(image_size) == count


def test_guidance_moves_away_from_the_unconditional_answer() -> None:
    """After one step the image is alpha x - sigma v: linear in the velocity v, and so in the guidance."""
    answers = []
    for guidance in (0.0, 1.0, 1.5):
        plan = replace(PLAN, steps=1, guidance=guidance)
        answers.append(sample(_labels_as_velocity, plan=plan, seeds=[0], labels=[1]))
    unconditional, conditional, guided = answers
    torch.testing.assert_close(guided, unconditional + 1.5 * (conditional - unconditional), atol=1e-4, rtol=0)
    assert (conditional - unconditional).abs().min() > 0.1


def _labels_as_velocity(noisy: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
    return torch.full_like(noisy, 0.1) if labels is None else 0.4 * labels.view(-1, 1, 1, 1).expand_as(noisy)


@pytest.mark.parametrize("steps", [0, 1000])
def test_a_number_of_steps_beyond_the_schedule_is_refused(steps: int) -> None:
    with pytest.raises(UserError, match=f"{steps} sampling steps"):
        sample(untrained(), plan=replace(PLAN, steps=steps), seeds=[0])


@pytest.mark.parametrize("steps", [2, 7, 25, 50, 900])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_time_steps_fall_strictly_to_zero(schedule: str, steps: int) -> None:
    levels = build_scheduler("ddpm", prediction="epsilon", schedule=schedule).alphas_cumprod
    chosen = sampling_timesteps(levels, steps)
    assert len(chosen) == steps
    assert chosen[-1] == 0
    assert chosen[0] > 990
    assert all(before > after for before, after in pairwise(chosen))


def test_the_training_draw_repeats_and_its_time_steps_are_spread_evenly() -> None:
    first, again = (draw_training_noise((8, 1, 4, 4), torch_generator(0, 5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert torch.equal((first.timesteps // 125).sort().values, torch.arange(8))
    other = draw_training_noise((8, 1, 4, 4), torch_generator(0, 6))
    assert not torch.equal(first.timesteps, other.timesteps)


def test_labels_are_withheld_as_often_as_asked() -> None:
    drops = draw_training_noise((4000, 1, 1, 1), torch_generator(0), label_drop=0.2).label_drop
    assert drops.float().mean().item() == pytest.approx(0.2, abs=0.03)


def test_withheld_labels_reach_the_model_as_the_null_label() -> None:
    seen = []

    def spy(noisy: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        seen.append(labels)
        return noisy

    draw = TrainingDraw(torch.tensor([1, 2]), torch.zeros(2, 1, 4, 4), torch.tensor([True, False]))
    scheduler = build_scheduler("ddpm", prediction="epsilon", schedule="linear")
    denoising_loss(spy, torch.zeros(2, 1, 4, 4), scheduler=scheduler, draw=draw, labels=torch.tensor([0, 1]))
    assert seen[0].tolist() == [NULL_LABEL, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_survive_the_way_to_a_tensor_and_back(channels: int) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    images = np.repeat(grey, 3, axis=-1) if channels == 1 else np.concatenate([grey, 255 - grey, grey // 2], axis=-1)
    np.testing.assert_array_equal(to_uint8(to_images(images)[:, :channels]), images)


def test_healthy_samples_pass(blobs: np.ndarray) -> None:
    check = collapse_check(blobs[:20], blobs[20:])
    assert (check.noise, check.repeated) == (False, False)
    assert check.message.startswith("The samples are neither")


def test_an_untrained_model_is_called_noise(blobs: np.ndarray) -> None:
    model = SwinUNet(SIZE, image_size=16, channels=1).eval()
    check = collapse_check(to_uint8(sample(model, plan=PLAN, seeds=range(4))), blobs)
    assert (check.noise, check.repeated) == (True, False)
    assert "pure noise" in check.message


@pytest.mark.parametrize("drawn", [16, 32, 64])
def test_noise_that_was_enlarged_is_still_noise(drawn: int) -> None:
    """Of a smaller model for images of 64 px: enlarging makes neighbours alike."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (8, drawn, drawn, 3), dtype=np.uint8)
    large = np.stack([np.asarray(Image.fromarray(one).resize((64, 64), Image.Resampling.BILINEAR)) for one in small])
    images = np.stack([draw_phantom("oral_ulcer", number, size=64, seed=0).image for number in range(8)]).astype(
        np.uint8
    )
    assert collapse_check(large, images).noise
    assert not collapse_check(images[:4], images[4:]).noise


@pytest.mark.parametrize("grain", [0, 10])
def test_one_image_over_and_over_is_seen_through_some_grain(blobs: np.ndarray, grain: int) -> None:
    noise = np.random.default_rng(1).normal(0, grain, (8, 16, 16, 3))
    check = collapse_check((blobs[:1] + noise).clip(0, 255).astype(np.uint8), blobs)
    assert (check.noise, check.repeated) == (False, True)
    assert "one and the same image" in check.message


def test_black_samples_are_a_repeated_image(blobs: np.ndarray) -> None:
    check = collapse_check(np.zeros_like(blobs), blobs)
    assert (check.noise, check.repeated) == (False, True)


def test_one_sample_is_too_few_for_a_verdict(blobs: np.ndarray) -> None:
    with pytest.raises(ValueError, match="1 samples"):
        collapse_check(blobs[:1], blobs)


@pytest.mark.slow
def test_a_small_model_learns_two_blobs(blobs: np.ndarray) -> None:
    torch.manual_seed(0)
    model = SwinUNet(SIZE, image_size=16, channels=1)
    scheduler = build_scheduler("ddpm", prediction="v_prediction", schedule="cosine")
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images, losses = 2 * to_images(blobs)[:, :1] - 1, []
    for step in range(150):
        batch = images[torch.randint(len(images), (16,), generator=torch_generator("batch", step))]
        loss = denoising_loss(
            model, batch, scheduler=scheduler, draw=draw_training_noise(batch.shape, torch_generator("draw", step))
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 0.5
    assert np.mean(losses[-20:]) < 0.25 * losses[0]

    samples = to_uint8(sample(model.eval(), plan=replace(PLAN, steps=20), seeds=range(16)))
    assert samples.mean() == pytest.approx(blobs.mean(), abs=20)  # noise would lie near 127
    assert samples.std() == pytest.approx(blobs.std(), abs=20)
    upper_left = samples[:, :8, :8].mean(axis=(1, 2, 3)) > samples[:, 8:, 8:].mean(axis=(1, 2, 3))
    assert 3 <= upper_left.sum() <= 13
    assert not collapse_check(samples, blobs).noise
