"""Training loss, sampling and collapse check of the diffusion model; diffusers' schedulers do the mathematics.

Shapes: B batch, N images to sample, C image channels (1 grey, 3 RGB), S image side. The denoiser sees [-1, 1].
Sources (arXiv): DDPM, Ho et al., 2006.11239; cosine schedule, Nichol and Dhariwal, 2102.09672; v prediction, Salimans
and Ho, 2202.00512; DDIM, Song et al., 2010.02502; DPM-Solver++, Lu et al., 2211.01095; classifier-free guidance, Ho and
Salimans, 2207.12598.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from numpy.typing import NDArray
from torch import Tensor

from tskd.errors import UserError
from tskd.models.swin_unet import NULL_LABEL
from tskd.seeding import torch_generator

Scheduler: TypeAlias = DDPMScheduler | DPMSolverMultistepScheduler
Denoiser: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(B, C, S, S) noisy images, (B,) time steps, (B,) labels or None -> (B, C, S, S)."""
SchedulerKind = Literal["ddpm", "ddim", "dpmsolver++"]
PredictionKind = Literal["epsilon", "v_prediction"]
ScheduleKind = Literal["linear", "cosine"]

TIMESTEPS = 1000
"""From an image to noise, as in DDPM."""
BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
LOWEST_LOG_SNR = -5.1
"""Half the log of the signal-to-noise ratio where sampling starts: the cosine schedule's last time steps are so noisy
that a solver would divide by nearly nothing (diffusers' advice for ``lambda_min_clipped``)."""

SMOOTHNESS_RATIO = 0.5
"""Samples whose neighbouring pixels correlate less than this share of the training images' correlation are noise."""
SPREAD_RATIO = 0.25
"""Samples that differ from each other by less than this share of the training images' difference are one image."""
THUMBNAIL = 16
"""Images are compared as thumbnails of this many pixels a side, where fine noise cannot pass for variety."""
MOST_COMPARED = 256
"""Enough for both averages; the number of pairs grows with the square."""

MOST_IMAGES_AT_ONCE = 16
MOST_PIXELS_AT_ONCE = 2**19


class TrainingDraw(NamedTuple):
    """The random part of one training step."""

    timesteps: Tensor
    """(B,) int64."""
    noise: Tensor
    """(B, C, S, S) standard normal."""
    label_drop: Tensor
    """(B,) bool: True where the label is withheld, so that the model learns to do without."""


def build_scheduler(kind: SchedulerKind, *, prediction: PredictionKind, schedule: ScheduleKind) -> Scheduler:
    """Return diffusers' scheduler: ``ddpm`` for training and ancestral sampling, the others for sampling in few steps.

    All clip the predicted image to [-1, 1]. DDIM without noise is the first-order DPM-Solver++ (Lu et al., section 4);
    diffusers' own DDIM class takes strides of equal length only, which cost detail (see :func:`sampling_timesteps`).
    """
    shared = {
        "num_train_timesteps": TIMESTEPS,
        "beta_schedule": BETA_SCHEDULES[schedule],
        "prediction_type": prediction,
    }
    if kind == "ddpm":
        return DDPMScheduler(**shared, clip_sample=True)
    # These have no plain clipping; thresholding with a greatest value of 1 amounts to it.
    order = 1 if kind == "ddim" else 2
    return DPMSolverMultistepScheduler(**shared, solver_order=order, thresholding=True, sample_max_value=1.0)


def sampling_timesteps(alphas_cumprod: Tensor, steps: int) -> list[int]:
    """Return ``steps`` time steps, falling from the noisiest usable one to 0, denser towards 0 (quadratic).

    The last jump, to the clean image, averages away all detail finer than the noise that is left at its start: with 25
    equal strides pixels of standard deviation 0.05 come out at 0.02, with these at 0.05. ``alphas_cumprod`` (T,).
    """
    log_snr = 0.5 * (alphas_cumprod / (1 - alphas_cumprod)).log()
    last = int((log_snr >= LOWEST_LOG_SNR).sum()) - 1
    if steps == 1:
        return [last]
    quadratic = (round(last * (index / (steps - 1)) ** 2) for index in range(steps))
    return [max(timestep, index) for index, timestep in enumerate(quadratic)][::-1]


def draw_training_noise(shape: Sequence[int], generator: torch.Generator, *, label_drop: float = 0.1) -> TrainingDraw:
    """Draw time steps, noise and withheld labels for one batch of ``shape`` (B, C, S, S).

    The time steps are evenly spread with one common random offset: uniform for each image, but with less variance of
    the batch's loss than independent draws (Kingma et al., arXiv 2107.00630, appendix I.1).
    """
    batch = shape[0]
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    spread = (torch.arange(batch, dtype=torch.float64) / batch + offset) % 1
    noise = torch.randn(tuple(shape), generator=generator)
    dropped = torch.rand(batch, generator=generator) < label_drop
    return TrainingDraw((spread * TIMESTEPS).long().clamp_(max=TIMESTEPS - 1), noise, dropped)


def denoising_loss(
    model: Denoiser,
    images: Tensor,
    *,
    scheduler: DDPMScheduler,
    draw: TrainingDraw,
    labels: Tensor | None = None,
) -> Tensor:
    """Return the mean squared error of the predicted noise (or velocity), a scalar; zero noise predicted scores 1.

    ``images`` (B, C, S, S) in [-1, 1]; ``labels`` (B,) count only where the draw does not withhold them.
    """
    timesteps, noise, label_drop = (part.to(images.device) for part in draw)
    noisy = scheduler.add_noise(images, noise, timesteps)
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(images, noise, timesteps)
    else:
        target = noise
    if labels is not None:
        labels = labels.masked_fill(label_drop, NULL_LABEL)
    return F.mse_loss(model(noisy, timesteps, labels).float(), target)


@dataclass(frozen=True)
class SamplingPlan:
    """How images are drawn from a trained denoiser; prediction and schedule are those of its training."""

    prediction: PredictionKind
    schedule: ScheduleKind
    image_size: int
    channels: int
    solver: SchedulerKind = "dpmsolver++"
    steps: int = 25
    guidance: float = 1.0
    """1: the plain conditional model; above 1: the class is stressed at the cost of variety."""
    half: torch.dtype | None = None
    """Run the denoiser under autocast to this type; the solver stays in float32."""

    def scheduler(self) -> Scheduler:
        """Return the solver, set to ``steps`` steps; raises UserError for a number of steps that it cannot take."""
        scheduler = build_scheduler(self.solver, prediction=self.prediction, schedule=self.schedule)
        usable = sampling_timesteps(scheduler.alphas_cumprod, 1)[0] + 1
        if not 1 <= self.steps <= usable:
            raise UserError(
                f"{self.steps} sampling steps were asked for, but the {self.schedule} schedule allows 1 to {usable}; "
                "20 to 50 are usual."
            )
        scheduler.set_timesteps(timesteps=sampling_timesteps(scheduler.alphas_cumprod, self.steps))
        return scheduler


@torch.inference_mode()
def sample(
    model: Denoiser,
    *,
    plan: SamplingPlan,
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return one image a seed, (N, C, S, S) float32 in [0, 1] on the CPU; ``model`` is in eval mode on ``device``.

    Image k depends on ``seeds[k]`` and ``labels[k]`` alone. Its noise comes from a generator of its own on the CPU, and
    the denoiser always runs on batches of one size, the last one filled up: the kernels that a library picks depend on
    the batch size and would otherwise change the last bits.
    """
    images = []
    at_once = images_at_once(plan.image_size)
    for start in range(0, len(seeds), at_once):
        chunk = list(seeds[start : start + at_once])
        filler = [chunk[-1]] * (at_once - len(chunk))
        chunk_labels = None
        if labels is not None:
            own = list(labels[start : start + at_once])
            chunk_labels = torch.tensor(own + own[-1:] * len(filler), device=device)
        finished = _sample_chunk(model, plan, chunk + filler, chunk_labels, torch.device(device))
        images.append(finished[: len(chunk)])
    return torch.cat(images) if images else torch.empty(0, plan.channels, plan.image_size, plan.image_size)


def images_at_once(image_size: int) -> int:
    """Return how many images the denoiser sees at once when sampling: a rule of the image size and nothing else."""
    return max(1, min(MOST_IMAGES_AT_ONCE, MOST_PIXELS_AT_ONCE // image_size**2))


def _sample_chunk(
    model: Denoiser, plan: SamplingPlan, seeds: Sequence[int], labels: Tensor | None, device: torch.device
) -> Tensor:
    """Solve the reverse process for one chunk of seeds -> (B, C, S, S) in [0, 1] on the CPU."""
    scheduler = plan.scheduler()
    generators = [torch_generator("sample", seed) for seed in seeds]
    shape = (plan.channels, plan.image_size, plan.image_size)
    noisy = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
    # Only ancestral sampling draws again; a list gives every image noise from its own generator.
    options = {"generator": generators} if plan.solver == "ddpm" else {}
    for timestep in scheduler.timesteps:
        predicted = _predict(model, noisy, timestep.to(device).expand(len(seeds)), labels, plan)
        noisy = scheduler.step(predicted, timestep, noisy, **options, return_dict=False)[0]
    return ((noisy.float() + 1) / 2).clamp(0, 1).cpu()


def _predict(model: Denoiser, noisy: Tensor, timesteps: Tensor, labels: Tensor | None, plan: SamplingPlan) -> Tensor:
    """Return the denoiser's answer in float32, guided away from its unconditional one where the plan says so."""
    with torch.autocast(noisy.device.type, dtype=plan.half, enabled=plan.half is not None):
        conditional = model(noisy, timesteps, labels).float()
        if labels is None or plan.guidance == 1:
            return conditional
        unconditional = model(noisy, timesteps, None).float()
    return unconditional + plan.guidance * (conditional - unconditional)


def to_uint8(samples: Tensor) -> NDArray[np.uint8]:
    """Convert samples (N, 1 or 3, S, S) in [0, 1] to (N, S, S, 3) uint8 images."""
    pixels = (samples.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


COARSE = 16
"""Side in pixels at which noise is told from images: the smallest that a diffusion model may draw."""


@dataclass(frozen=True)
class CollapseCheck:
    """The verdict on a set of samples."""

    noise: bool
    repeated: bool
    message: str
    """One sentence for people, with the numbers behind the verdict."""


def collapse_check(samples: NDArray[np.uint8], training: NDArray[np.uint8]) -> CollapseCheck:
    """Compare samples with training images, both (N, S, S, 3) uint8, at least two of each; S may differ.

    Pure noise: the correlation of neighbouring pixels is far below that of the training images. One repeated image: the
    samples' mean pairwise distance is far below theirs. Raises ValueError for fewer than two images.
    """
    if min(len(samples), len(training)) < 2:
        raise ValueError(
            f"Two images a side are needed, not {len(samples)} samples and {len(training)} training images."
        )
    drawn, real = (torch.from_numpy(images[:MOST_COMPARED]).float() / 255 for images in (samples, training))
    smoothness, usual_smoothness = neighbour_correlation(drawn), neighbour_correlation(real)
    spread, usual_spread = mean_distance(drawn), mean_distance(real)
    noise = smoothness < SMOOTHNESS_RATIO * usual_smoothness
    repeated = not noise and spread < SPREAD_RATIO * usual_spread
    numbers = (
        f"neighbouring pixels correlate {smoothness:.2f} (training images {usual_smoothness:.2f}), "
        f"images differ by {255 * spread:.0f} grey levels (training images {255 * usual_spread:.0f})"
    )
    return CollapseCheck(noise, repeated, f"{_verdict(noise, repeated)}: {numbers}.")


def _verdict(noise: bool, repeated: bool) -> str:
    if noise:
        return "The samples are still pure noise; train for more steps, or check the learning rate"
    if repeated:
        return "The samples are one and the same image; add training images or lower the learning rate"
    return "The samples are neither pure noise nor one repeated image"


def neighbour_correlation(images: Tensor) -> float:
    """Return the median over (N, S, S, 3) images of the correlation of adjacent pixels; a flat image counts as 1.

    Images are averaged to ``COARSE`` pixels first: enlarging makes neighbours of noise alike, and noise averaged stays
    noise.
    """
    grey = images.mean(dim=-1)
    if grey.shape[-1] > COARSE:
        grey = F.interpolate(grey[:, None], size=(COARSE, COARSE), mode="area")[:, 0]
    grey = grey - grey.mean(dim=(1, 2), keepdim=True)
    variance = grey.square().mean(dim=(1, 2))
    across = (grey[:, :, 1:] * grey[:, :, :-1]).mean(dim=(1, 2))
    down = (grey[:, 1:] * grey[:, :-1]).mean(dim=(1, 2))
    correlation = (across + down) / 2 / variance.clamp(min=1e-8)
    return float(torch.where(variance < 1e-8, 1.0, correlation).median())


def mean_distance(images: Tensor) -> float:
    """Return the mean over all pairs of (N, S, S, 3) images of the root mean squared difference of their thumbnails."""
    thumbnails = F.adaptive_avg_pool2d(images.permute(0, 3, 1, 2), THUMBNAIL).flatten(1)
    return float(torch.pdist(thumbnails).mean() / thumbnails.shape[1] ** 0.5)
