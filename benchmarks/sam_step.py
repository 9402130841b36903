"""Time and memory of one LoRA step on SAM ViT-B with random weights: forward, backward, AdamW.

    python benchmarks/sam_step.py --sizes 256 512 --threads 1

Each size runs in a fresh process, so that its peak memory (resident set, imports and weights included) is its own.
Seconds are those of its processor time over the threads, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from measure import in_fresh_process, print_results
from transformers import SamConfig, SamModel

from tskd.machine.memory import peak_memory_mb
from tskd.models.lora import set_adaptation
from tskd.models.sam import SamSegmenter


def main() -> None:
    """Print one row a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="image sizes in pixels")
    parser.add_argument("--batch", type=int, default=1, help="images a step")
    parser.add_argument("--steps", type=int, default=2, help="optimiser steps; the first and the last are timed")
    parser.add_argument("--rank", type=int, default=4, help="LoRA rank")
    parser.add_argument("--checkpointing", action="store_true", help="compute blocks again in the backward pass")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    rows = [in_fresh_process(measure, size, options) for size in options.sizes]
    print_results(rows, as_json=options.json, threads=options.threads)


def measure(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train for ``options.steps`` steps at ``size`` pixels in this process and return what they cost."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = SamSegmenter(SamModel(SamConfig()), classes=1, image_size=size)
    adaptation = set_adaptation(model, "lora", rank=options.rank)
    if options.checkpointing:
        model.train().checkpoint_gradients()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    images = torch.rand(options.batch, 3, size, size)
    masks = (images.mean(dim=1, keepdim=True) > 0.5).float()
    seconds = []
    for _ in range(options.steps):
        start = time.process_time()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images).logits, masks)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append((time.process_time() - start) / options.threads)
    if not torch.isfinite(loss):
        raise RuntimeError(f"The loss at {size} px is {loss.item()}.")
    return {
        "size px": size,
        "batch": options.batch,
        "rank": options.rank,
        "blocks": "computed again" if options.checkpointing else "kept",
        "first step s": seconds[0],
        "last step s": seconds[-1],
        "peak MB": round(peak_memory_mb()),
        "trained parameters": adaptation.parameters,
        "of the encoder": sum(p.numel() for p in model.encoder.parameters() if p.requires_grad),
    }


if __name__ == "__main__":
    main()
