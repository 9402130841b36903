"""The wiring of diffusers' schedulers against formulas written out by hand, and against a denoiser that is exact."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from tskd.models.diffusion import (
    BETA_SCHEDULES,
    PredictionKind,
    SamplingPlan,
    ScheduleKind,
    SchedulerKind,
    TrainingDraw,
    build_scheduler,
    denoising_loss,
    sample,
)

T = 1000


def alpha_bar(schedule: ScheduleKind) -> Tensor:
    """(T,) float64: the product of 1 - beta, by the papers' formulas (DDPM section 4; Improved DDPM equation 17)."""
    if schedule == "linear":
        betas = [1e-4 + (0.02 - 1e-4) * t / (T - 1) for t in range(T)]
    else:
        level = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)]
        betas = [min(1 - after / before, 0.999) for before, after in pairwise(level)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)


def noise_in_gaussian(noisy: Tensor, level: Tensor, *, mean: float, spread: float) -> Tensor:
    """Return the expected noise in ``noisy`` where clean pixels are N(mean, spread²), by Gauss conditioning."""
    variance = level * spread**2 + 1 - level
    return ((1 - level).sqrt() / variance * (noisy - level.sqrt() * mean)).float()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noising_and_target_follow_the_closed_form(prediction: PredictionKind, schedule: ScheduleKind) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 1, 8, 8, generator=generator) * 2 - 1
    timesteps, noise = torch.tensor([0, 300, 700, 999]), torch.randn(4, 1, 8, 8, generator=generator)
    signal = alpha_bar(schedule)[timesteps].view(-1, 1, 1, 1).sqrt()
    spread = (1 - signal**2).sqrt()
    seen = {}

    def spy(noisy: Tensor, steps: Tensor, labels: Tensor | None) -> Tensor:
        seen["noisy"], seen["steps"] = noisy, steps
        return torch.full_like(noisy, 0.25)

    scheduler = build_scheduler("ddpm", prediction=prediction, schedule=schedule)
    draw = TrainingDraw(timesteps, noise, torch.zeros(4, dtype=torch.bool))
    loss = denoising_loss(spy, images, scheduler=scheduler, draw=draw)

    target = noise if prediction == "epsilon" else signal * noise - spread * images
    torch.testing.assert_close(seen["noisy"].double(), signal * images + spread * noise, atol=2e-4, rtol=0)
    torch.testing.assert_close(loss.double(), (target.double() - 0.25).square().mean(), atol=1e-4, rtol=0)
    assert torch.equal(seen["steps"], timesteps)


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpmsolver++"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sampling_with_an_exact_denoiser_recovers_the_only_image(
    prediction: PredictionKind, schedule: ScheduleKind, solver: SchedulerKind
) -> None:
    image = torch.linspace(-0.9, 0.9, 64).view(1, 1, 8, 8)
    levels = alpha_bar(schedule)

    def exact(noisy: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        signal = levels[timesteps].view(-1, 1, 1, 1).sqrt()
        spread = (1 - signal**2).sqrt()
        noise = (noisy - signal * image) / spread
        return (noise if prediction == "epsilon" else signal * noise - spread * image).float()

    plan = SamplingPlan(prediction=prediction, schedule=schedule, image_size=8, channels=1, solver=solver, steps=20)
    samples = sample(exact, plan=plan, seeds=[0, 1])
    torch.testing.assert_close(samples, ((image + 1) / 2).expand(2, -1, -1, -1), atol=2e-3, rtol=0)


@pytest.mark.parametrize(("solver", "steps"), [("ddpm", 100), ("ddim", 100), ("dpmsolver++", 25)])
def test_sampling_with_the_exact_denoiser_of_a_gaussian_has_its_mean_and_spread(
    solver: SchedulerKind, steps: int
) -> None:
    """Pixels ~ N(0.2, 0.15²) independently: the best noise prediction is linear, and solvers must keep the variance."""
    mean, spread = 0.2, 0.15
    levels = alpha_bar("linear")

    def exact(noisy: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        return noise_in_gaussian(noisy, levels[timesteps].view(-1, 1, 1, 1), mean=mean, spread=spread)

    plan = SamplingPlan(prediction="epsilon", schedule="linear", image_size=32, channels=1, solver=solver, steps=steps)
    pixels = 2 * sample(exact, plan=plan, seeds=range(16)) - 1
    assert pixels.mean().item() == pytest.approx(mean, abs=0.01)
    assert pixels.std().item() == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddim_takes_the_steps_of_the_reference_implementation(schedule: ScheduleKind) -> None:
    """The first-order DPM-Solver++ that stands for DDIM against diffusers' DDIM on the strides that both can take."""
    reference = DDIMScheduler(
        beta_schedule=BETA_SCHEDULES[schedule], prediction_type="epsilon", timestep_spacing="trailing"
    )
    reference.set_timesteps(20)
    ours = build_scheduler("ddim", prediction="epsilon", schedule=schedule)
    ours.set_timesteps(timesteps=reference.timesteps[1:].tolist())
    levels = alpha_bar(schedule)
    states = [torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))] * 2
    for timestep in reference.timesteps[1:]:
        noises = [noise_in_gaussian(state, levels[timestep], mean=0.2, spread=0.15) for state in states]
        states = [
            scheduler.step(noise, timestep, state, return_dict=False)[0]
            for scheduler, noise, state in zip((reference, ours), noises, states)
        ]
    torch.testing.assert_close(*states, atol=1e-4, rtol=1e-3)
