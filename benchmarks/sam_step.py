"""Time and memory of one LoRA step on SAM ViT-B with random weights: forward, backward, AdamW.

    python benchmarks/sam_step.py --sizes 256 512 --threads 1

Each size runs in a fresh process, so that its peak memory (resident set, imports and weights included) is its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
from transformers import SamConfig, SamModel

from tskd.models.lora import set_adaptation
from tskd.models.sam import SamSegmenter


class Measurement(NamedTuple):
    """What one size cost."""

    first_seconds: float
    last_seconds: float
    peak_mb: float
    trained: int
    adapter: int


def main() -> None:
    """Print one table row a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="image sizes in pixels")
    parser.add_argument("--batch", type=int, default=1, help="images a step")
    parser.add_argument("--steps", type=int, default=2, help="optimiser steps; the first and the last are timed")
    parser.add_argument("--rank", type=int, default=4, help="LoRA rank")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    print(f"SAM ViT-B, random weights, LoRA rank {options.rank}, batch {options.batch}, {options.threads} thread(s)")
    print("size_px  first_step_s  last_step_s  peak_memory_mb  trained_parameters  adapter_parameters")
    # One process serves one size: its peak memory cannot be lowered afterwards.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh, max_tasks_per_child=1) as processes:
        for size in options.sizes:
            row = processes.submit(measure, size, options).result()
            print(
                f"{size:>7}  {row.first_seconds:>12.2f}  {row.last_seconds:>11.2f}  {row.peak_mb:>14.0f}"
                f"  {row.trained:>18}  {row.adapter:>18}",
                flush=True,
            )


def measure(size: int, options: argparse.Namespace) -> Measurement:
    """Train for ``options.steps`` steps at ``size`` pixels in this process and return the cost."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = SamSegmenter(SamModel(SamConfig()), classes=1, image_size=size)
    adaptation = set_adaptation(model, "lora", rank=options.rank)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    images = torch.rand(options.batch, 3, size, size)
    masks = (images.mean(dim=1, keepdim=True) > 0.5).float()
    seconds = []
    for _ in range(options.steps):
        start = time.perf_counter()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images).logits, masks)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    if not torch.isfinite(loss):
        raise RuntimeError(f"The loss at {size} px is {loss.item()}.")
    adapter = sum(p.numel() for p in model.encoder.parameters() if p.requires_grad)
    return Measurement(seconds[0], seconds[-1], _peak_memory_mb(), adaptation.parameters, adapter)


def _peak_memory_mb() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    main()
