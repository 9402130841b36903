"""Augmentation: images a second of processor time, ours beside other libraries' in the same run.

    python benchmarks/augment.py                        # what is installed of batchgeneratorsv2, Kornia, torchvision
    python benchmarks/augment.py --quick                # a second: does it run?

Every way gets batches of 16 float images with masks and changes them as nnU-Net does, each change with its probability:
rotation, scale, mirroring, noise, blur, brightness, contrast, low resolution, gamma both ways. ``light`` is our
default, ``bent`` ours with elastic bending of every fifth image. batchgeneratorsv2 and torchvision take one image at
a time; Kornia and torchvision have no gamma that keeps the mean, and get their own. They take turns, so that a busy
machine slows all alike, and the best round counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measure import print_results
from torch import Tensor

from tskd.engine import ImageBatches
from tskd.recipe.schema import AugmentConfig

BATCH = 16
Way = Callable[[int], object]
"""Makes the batch of a step."""


def main() -> None:
    """Print a row for each size and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], help="sides in pixels")
    parser.add_argument("--steps", type=int, default=40, help="batches a round")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--quick", action="store_true", help="one small batch of each")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes, steps, rounds = ([32], 1, 1) if options.quick else (options.sizes, options.steps, options.rounds)
    rows = [row for size in sizes for row in measure(size, steps, rounds)]
    print_results(rows, as_json=options.json, threads=options.threads)


def measure(size: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Return one row a way: images a second of processor time over the best round."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (64, size, size, 3), dtype=np.uint8)
    masks = generator.integers(0, 2, (64, size, size), dtype=np.uint8)
    ways = {
        "ours, light": ours(images, masks, "light"),
        "ours, nnunet": ours(images, masks, "nnunet"),
        "ours, bent": ours(images, masks, {**AugmentConfig.model_validate("nnunet").model_dump(), "p_elastic": 0.2}),
    }
    others = {"batchgeneratorsv2": batchgeneratorsv2, "kornia": kornia, "torchvision": torchvision}
    ways |= {name: make(images, masks) for name, make in others.items() if importlib.util.find_spec(name)}
    best = dict.fromkeys(ways, 0.0)
    for turn in range(rounds):
        for name, way in ways.items():
            way(0)
            began = time.process_time()
            for step in range(turn * steps, (turn + 1) * steps):
                way(step)
            best[name] = max(best[name], BATCH * steps / (time.process_time() - began))
    return [{"px": size, "way": name, "images/s": speed} for name, speed in best.items()]


def ours(images: np.ndarray, masks: np.ndarray, settings: Any) -> Way:
    """Return our batches."""
    names = [str(number) for number in range(len(images))]
    augment = AugmentConfig.model_validate(settings)
    batches = ImageBatches(images, masks, names, BATCH, augment, seed=0, flip=(True, False))
    return lambda step: batches(step, 0, 1)


def _chosen(images: np.ndarray, masks: np.ndarray, step: int) -> tuple[Tensor, Tensor]:
    rows = np.random.default_rng(step).permutation(len(images))[:BATCH]
    planes = torch.from_numpy(images[rows]).permute(0, 3, 1, 2).float().div_(255)
    return planes, torch.from_numpy(masks[rows])[:, None]


def batchgeneratorsv2(images: np.ndarray, masks: np.ndarray) -> Way:
    """Return nnU-Net's own transforms (trainer of version 2.8, 2-D), image by image as its workers call them."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    half_turn = (-np.pi, np.pi)
    spatial = SpatialTransform(
        images.shape[1:3], patch_center_dist_from_border=0, random_crop=False, p_rotation=0.2, rotation=half_turn,
        p_scaling=0.2, scaling=(0.7, 1.4), p_synchronize_scaling_across_axes=1, border_mode_seg="constant",
        padding_value_seg=-1,
    )  # fmt: skip
    gamma = {"gamma": BGContrast((0.7, 1.5)), "synchronize_channels": False, "p_per_channel": 1, "p_retain_stats": 1}
    changes = [
        (GaussianNoiseTransform((0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1),
        (GaussianBlurTransform((0.5, 1.0), False, False, p_per_channel=0.5, benchmark=True), 0.2),
        (MultiplicativeBrightnessTransform(BGContrast((0.75, 1.25)), False, 1), 0.15),
        (ContrastTransform(BGContrast((0.75, 1.25)), True, False, 1), 0.15),
        (SimulateLowResolutionTransform((0.5, 1), False, True, None, None, 0.5), 0.25),
        (GammaTransform(p_invert_image=1, **gamma), 0.1),
        (GammaTransform(p_invert_image=0, **gamma), 0.3),
    ]
    change = ComposeTransforms([spatial, *(RandomTransform(*one) for one in changes), MirrorTransform((1,))])

    def way(step: int) -> object:
        planes, classes = _chosen(images, masks, step)
        return [change(image=image, segmentation=mask.to(torch.int16)) for image, mask in zip(planes, classes)]

    return way


def kornia(images: np.ndarray, masks: np.ndarray) -> Way:
    """Return the nearest that Kornia has, on whole batches."""
    import kornia.augmentation as augmentations

    size = images.shape[1]
    change = augmentations.AugmentationSequential(
        augmentations.RandomHorizontalFlip(p=0.5),
        augmentations.RandomAffine(180.0, p=0.2),
        augmentations.RandomAffine(0.0, scale=(0.7, 1.4), p=0.2),
        augmentations.RandomGaussianNoise(std=0.02, p=0.1),
        augmentations.RandomGaussianBlur((9, 9), (0.5, 1.0), p=0.2),
        augmentations.RandomBrightness((0.75, 1.25), p=0.15),
        augmentations.RandomContrast((0.75, 1.25), p=0.15),
        augmentations.RandomGamma((0.7, 1.5), p=0.4),
        data_keys=["input", "mask"],
    )
    smaller = torch.nn.functional.interpolate

    def way(step: int) -> object:
        planes, classes = _chosen(images, masks, step)
        planes, classes = change(planes, classes.float())
        for row in np.flatnonzero(np.random.default_rng(step).random(BATCH) < 0.25):  # Kornia has no such change
            reduced = smaller(planes[row : row + 1], size * 3 // 4, mode="nearest-exact")
            planes[row : row + 1] = smaller(reduced, size, mode="bilinear")
        return planes, classes

    return way


def torchvision(images: np.ndarray, masks: np.ndarray) -> Way:
    """Return the nearest that torchvision's second version has, image by image: it draws once for a whole batch."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    size = images.shape[1]
    change = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.RandomAffine(180, interpolation=v2.InterpolationMode.BILINEAR)], p=0.2),
            v2.RandomApply([v2.RandomAffine(0, scale=(0.7, 1.4), interpolation=v2.InterpolationMode.BILINEAR)], p=0.2),
            v2.RandomApply([v2.GaussianNoise(sigma=0.02)], p=0.1),
            v2.RandomApply([v2.GaussianBlur(9, (0.5, 1.0))], p=0.2),
            v2.RandomApply([v2.ColorJitter(brightness=(0.75, 1.25))], p=0.15),
            v2.RandomApply([v2.ColorJitter(contrast=(0.75, 1.25))], p=0.15),
            v2.RandomApply([v2.Resize(size * 3 // 4, antialias=False), v2.Resize(size, antialias=False)], p=0.25),
            v2.RandomApply([v2.Lambda(lambda image: image.pow(1.2), tv_tensors.Image)], p=0.4),
        ]
    )

    def way(step: int) -> object:
        planes, classes = _chosen(images, masks, step)
        return [change(tv_tensors.Image(image), tv_tensors.Mask(mask)) for image, mask in zip(planes, classes)]

    return way


if __name__ == "__main__":
    main()
