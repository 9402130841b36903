"""Does labelling what the model doubts most help more than labelling at random?

    tskd stage prepare --data DATA --set data.image_size=64 --out OUT
    python benchmarks/labelling.py OUT/artifacts/prepare-0123456789ab --seeds 6

For each seed a small student (U-Net over EfficientNet-Lite0) learns from a few labelled images drawn at random. It then
looks at all other images of the training side, whose masks stay hidden, and names as many again to label: those of the
least confidence, as the page's list has them; those of the largest predicted area, a rival that needs no doubt; or any.
With each choice a new student learns from both halves, the same steps from the same start, and is scored on the test
images. Differences to the random choice are told with a 95 % interval over seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import dice_on_test, print_results
from nnunet import open_prepared
from torch import nn

from tskd.console import say
from tskd.data.prepared import Prepared
from tskd.engine import Runtime, Training, fit
from tskd.engine.runtime import open_runtime
from tskd.errors import UserError
from tskd.metrics.intervals import bootstrap_mean
from tskd.models.registry import build_model
from tskd.models.weights import EFFICIENTNET_LITE0, efficientnet_lite0_path
from tskd.recipe.schema import OFFLINE, EngineConfig, FinetuneConfig, StudentConfig
from tskd.seeding import numpy_generator
from tskd.stages.label_training import Labelled, label_step, labelled_batches
from tskd.stages.network_answers import network_answer
from tskd.stages.students import describe_student

RANDOM = "at random"


class Seen(NamedTuple):
    """What a student makes of the images that are not labelled yet."""

    confidence: np.ndarray
    area: np.ndarray
    """Pixels of the predicted mask."""


CHOICES: Mapping[str, Callable[[Seen, np.random.Generator], np.ndarray]] = {
    RANDOM: lambda seen, rng: rng.random(len(seen.area)),
    "most doubtful": lambda seen, rng: seen.confidence,
    "largest predicted area": lambda seen, rng: -seen.area,
}
"""How each orders the images, lowest first."""


def main() -> None:
    """Print one row a choice; exit 2 with one message where the data do not suffice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path, help="folder of the stage prepare: OUT/artifacts/prepare-...")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first", type=int, default=10, help="labels to begin with; as many are added")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    try:
        prepared = Prepared(open_prepared(options.prepared).path)
        pool = prepared.rows("train", "val")
        if len(pool) < 2 * options.first + 1 or not len(prepared.rows("test")):
            raise UserError(
                f"{options.prepared}: {len(pool)} labelled images, and a choice needs more, and test images."
            )
        runtime = replace(open_runtime(EngineConfig(accelerator="cpu", threads=1)), checkpoint_seconds=1e9)
        scores = [scores_of(prepared, pool, seed, options, runtime) for seed in range(options.seeds)]
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print_results(rows_of(scores), as_json=options.json, threads=1)


def scores_of(
    prepared: Prepared, pool: np.ndarray, seed: int, options: argparse.Namespace, runtime: Runtime
) -> dict[str, float]:
    """Return the Dice of each choice on the test images for one draw of the first labels."""
    rng = numpy_generator(seed, "labelling")
    first = np.sort(rng.choice(pool, options.first, replace=False))
    rest = np.setdiff1d(pool, first)
    student = trained(prepared, first, seed, options.steps, runtime)
    seen = look(student, prepared, rest)
    scores = {f"{options.first} labels": dice(student, prepared)}
    for name, order in CHOICES.items():
        added = rest[np.argsort(order(seen, rng), kind="stable")[: options.first]]
        both = np.sort(np.concatenate([first, added]))
        scores[name] = dice(trained(prepared, both, seed, options.steps, runtime), prepared)
    say(f"seed {seed}: " + ", ".join(f"{name} {dice:.3f}" for name, dice in scores.items()))
    return scores


def trained(prepared: Prepared, rows: np.ndarray, seed: int, steps: int, runtime: Runtime) -> nn.Module:
    """Return a student that has learned from these rows alone; nothing is selected."""
    weights = OFFLINE if efficientnet_lite0_path() is not None else None
    torch.manual_seed(seed)
    model = build_model(
        describe_student(
            StudentConfig(backbone=EFFICIENTNET_LITE0, decoder="unet"),
            weights=weights, classes=prepared.classes, image_size=prepared.image_size,
        )
    )  # fmt: skip
    settings = FinetuneConfig(steps=steps, batch_size=8)
    labelled = Labelled(prepared.images[rows], prepared.masks[rows], prepared.names(rows))
    batches = labelled_batches(labelled, prepared.classes, settings, seed)
    with TemporaryDirectory() as folder:
        fit(Training("labelling", model, label_step, batches, settings, seed), Path(folder), runtime)
    return model.eval()


def dice(student: nn.Module, prepared: Prepared) -> float:
    """Return a student's mean Dice over the test cases."""
    return dice_on_test(prepared, lambda image: network_answer(student, image).classes)


def look(student: nn.Module, prepared: Prepared, rows: np.ndarray) -> Seen:
    """Return what a student says of images whose masks it does not know."""
    answers = [network_answer(student, np.asarray(prepared.images[row])) for row in rows]
    return Seen(np.array([one.confidence for one in answers]), np.array([(one.classes > 0).sum() for one in answers]))


def rows_of(scores: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Return one line a choice, the first of them what all begin with."""
    random = np.array([one[RANDOM] for one in scores])
    rows = []
    for name in scores[0]:
        dice = np.array([one[name] for one in scores])
        paired = bootstrap_mean(dice - random, seed=0)
        rows.append(
            {
                "labelled next": name,
                "seeds": len(scores),
                "Dice": f"{dice.mean():.3f}",
                "sd over seeds": f"{dice.std(ddof=1):.3f}" if len(dice) > 1 else "-",
                f"minus {RANDOM} (95 % over seeds)": "-" if name == RANDOM else str(paired),
                "seeds above": "-" if name == RANDOM else f"{int((dice > random).sum())} of {len(dice)}",
            }
        )
    return rows


if __name__ == "__main__":
    main()
