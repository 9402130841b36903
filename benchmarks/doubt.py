"""Does low confidence find low Dice, and are images of another kind called unlike the training images?

    python benchmarks/doubt.py OUT1/artifacts/finetune-0123456789ab OUT2/artifacts/finetune-...

Each argument is the artifact of a trained student; its data are found beside it. Its rule of doubt is made as a run
makes it and asked once on its own test images (Dice by image; intervals are bootstraps over cases), then on the test
images of every other student's data, and on its own made dark, noisy, inverted and turned.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measure import print_results

from tskd.artifacts import Artifact, find_by_digest, whole
from tskd.data.prepared import Prepared, spaced
from tskd.errors import UserError
from tskd.metrics.intervals import interval_text
from tskd.models.registry import load_model
from tskd.stages.doubt import measure, read_doubts
from tskd.stages.network_answers import network_answer

REMEDY = "Give OUT/artifacts/finetune-... of a finished run."
MOST_OTHERS = 100
"""Images of another kind that each student is asked about."""
CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "dark (x 0.3)": lambda image: (image * 0.3).astype(np.uint8),
    "noisy (sd 60)": lambda image: _noisy(image),
    "inverted": lambda image: 255 - image,
    "turned by 90 degrees": lambda image: np.ascontiguousarray(np.rot90(image)),
}


@dataclass(frozen=True)
class Student:
    """A trained student and its data."""

    artifact: Artifact
    prepared: Prepared

    @property
    def title(self) -> str:
        return f"{self.prepared.dataset['name']}, {self.prepared.image_size} px"


def main() -> None:
    """Print two tables; exit 2 with one message where an argument is no student."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", type=Path, nargs="+")
    parser.add_argument("--json", action="store_true", help="print one JSON object a table")
    options = parser.parse_args()
    try:
        students = [open_student(path) for path in options.students]
        worth, flags = zip(*(rows_of(one, students) for one in students))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    for rows in (worth, [row for some in flags for row in some]):
        print_results(rows, as_json=options.json, threads=torch.get_num_threads())
        print()


def open_student(path: Path) -> Student:
    """Return a student with its data, both verified."""
    artifact = whole(path.resolve(), REMEDY)
    data = find_by_digest(artifact.path.parent, "prepare", artifact.manifest["inputs"]["data"])
    if data is None:
        raise UserError(f"{path}: the data that it was trained on are not beside it. {REMEDY}")
    return Student(artifact, Prepared(whole(data.path, REMEDY).path))


def rows_of(student: Student, students: Sequence[Student]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what a student's doubts are worth, and how often it calls images unlike those of its training."""
    model = load_model(student.artifact.path).eval()
    with TemporaryDirectory() as folder:
        found = measure(model, student.prepared, student.prepared, Path(folder), device=torch.device("cpu"))
        doubts = read_doubts(Path(folder))

    def flagged(images: Iterator[np.ndarray]) -> float:
        answers = [network_answer(model, image, doubts).unfamiliarity for image in images]
        return float(np.mean([one is not None and one > 1 for one in answers]))

    flags = [
        {"student": student.title, "asked about": name, "called unlike": f"{flagged(images):.1%}"}
        for name, images in others_of(student, students)
    ]
    return worth_of(student, found), flags


def worth_of(student: Student, found: dict[str, Any]) -> dict[str, Any]:
    """Return one line of the first table."""
    order = found["ordering"]
    return {
        "student": student.title,
        "images": found["images"],
        "rank correlation with Dice": f"{order['rank_correlation']:.2f} ({_interval(order)})",
        "risk-coverage area": f"{order['area']:.3f}",
        "at random": f"{order['area_at_random']:.3f}",
        "at best": f"{order['area_at_best']:.3f}",
        "to look at": f"{found['looked_at'] / found['images']:.0%}",
        "their Dice": number(found["dice_looked_at"]),
        "the others'": number(found["dice_rest"]),
        "temperature": f"{found['temperature']:.2f} (n = {found['calibrated_on']})",
        "calibration error before": f"{found['ece_uncalibrated']:.3f}",
        "after": f"{found['ece']:.3f}",
        "own test images called unlike": f"{found['unfamiliar']:.1%}",
    }


def _interval(order: dict[str, Any]) -> str:
    return interval_text(order["ci95"], "{:.2f}".format)


def number(value: float | None) -> str:
    """Return a score as text."""
    return "-" if value is None else f"{value:.3f}"


def others_of(student: Student, students: Sequence[Student]) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
    """Yield images that a student has not learned from, by name."""
    for other in students:
        if other is not student:
            yield f"test images of {other.title}", _test_images(other.prepared)
    for name, change in CHANGES.items():
        yield f"its test images, {name}", map(change, _test_images(student.prepared))


def _test_images(prepared: Prepared) -> Iterator[np.ndarray]:
    rows = prepared.rows("test")
    return (prepared.native_image(int(row)) for row in spaced(rows, MOST_OTHERS))


def _noisy(image: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 60, image.shape[:2])[..., None]
    return np.clip(image + noise, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
