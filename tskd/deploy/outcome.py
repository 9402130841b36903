"""What became of the files that a prediction was asked for, and the table of it."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tskd.cells import ENCODING_ERRORS, harmless, original
from tskd.console import counted, duration, warn
from tskd.deploy.inputs import Failure
from tskd.deploy.label_files import write_file
from tskd.deploy.result_names import TABLE
from tskd.errors import UserError

_COLUMNS = (
    "file", "slice", "output", "height", "width", "class", "name", "pixels", "mm2", "confidence",
    "unfamiliarity", "look",
)  # fmt: skip
_MODEL = "model_sha256"
_ALL_COLUMNS = (*_COLUMNS, _MODEL)


@dataclass(frozen=True)
class Prediction:
    """What was found in one image or slice."""

    source: Path
    slice: int | None
    """Place in the volume of labels; None: the labels are one image."""
    output: Path
    height: int
    width: int
    pixels: tuple[int, ...]
    """Of each foreground class."""
    pixel_mm2: float | None
    """Area of a pixel where the file states a spacing."""
    confidence: float | None = None
    unfamiliarity: float | None = None
    look: str = ""
    """Why somebody should look at it; empty: nothing speaks for it."""

    def lines(self, classes: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the lines of the table: one a class."""
        numbers = (None if one is None else round(one, 4) for one in (self.confidence, self.unfamiliarity))
        doubts = (*numbers, self.look)
        for label, (name, count) in enumerate(zip(classes, self.pixels, strict=True), start=1):
            area = (
                None if self.pixel_mm2 is None else float(f"{count * self.pixel_mm2:.6g}")
            )  # pixels may be of micrometres
            place = (str(self.source), self.slice, str(self.output), self.height, self.width)
            yield dict(zip(_COLUMNS, (*place, label, name, count, area, *doubts), strict=True))


@dataclass
class Outcome:
    """What became of all inputs."""

    classes: tuple[str, ...]
    predictions: list[Prediction] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    not_done: list[Path] = field(default_factory=list)
    """Sources that are still to be predicted; none at the end, unless the work was stopped."""
    model: str = ""
    """The sha256 of the network that answered."""
    segmentations: list[Path] = field(default_factory=list)
    """DICOM Segmentations that were written, relative as ``output`` is."""
    seconds: float = 0.0
    """From the first file read to the last one written."""
    of_before: int = 0
    """Masks of earlier runs in the same folder, whose lines the table keeps."""

    def fail(self, source: Path, problem: str) -> None:
        """Note and tell what could not be predicted."""
        self.failures.append(Failure(source, problem))
        warn(problem)

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of ``predictions.csv``."""
        return [line for prediction in self.predictions for line in prediction.lines(self.classes)]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        failures = [{"file": str(failure.source), "problem": failure.problem} for failure in self.failures]
        left = {"not_done": [str(source) for source in self.not_done]} if self.not_done else {}
        segmentations = {"segmentations": list(map(str, self.segmentations))} if self.segmentations else {}
        lines = self.lines()
        told = {"classes": list(self.classes), _MODEL: self.model, "predictions": lines, "failures": failures}
        return {**told, **segmentations, **left}

    def summary(self, out: Path) -> str:
        """Return what was done in one line; ``out`` is where :func:`predict_paths` was told to write."""
        found: Counter[Path] = Counter()
        for prediction in self.predictions:
            found[prediction.output] += sum(prediction.pixels)
        images, empty = len(self.predictions), sum(count == 0 for count in found.values())
        pace = self.seconds / max(images, 1)
        return (
            f"{counted(images, 'image')} in {duration(self.seconds)} ({pace:.2f} s each); "
            f"{counted(len(found), 'mask')} in {out}, {empty} of them empty{self._to_look_at()}; "
            f"areas in {out / TABLE}{self._beside()}"
        )

    def _beside(self) -> str:
        if not self.of_before:
            return ""
        return f", beside those of {counted(self.of_before, 'mask')} of earlier runs (column {_MODEL}: by which model)"

    def _to_look_at(self) -> str:
        count = sum(bool(prediction.look) for prediction in self.predictions)
        return f"; {count} to look at (column look)" if count else ""

    def require_complete(self) -> None:
        """Raise UserError naming the files that could not be predicted, if there are any."""
        if self.failures:
            named = "".join(f"\n  {failure.source}" for failure in self.failures)
            others = "; all others are done" if self.predictions else ""
            raise UserError(f"{counted(len(self.failures), 'input')} could not be predicted{others}:{named}")

    def write_table(self, out: Path) -> None:
        """Write ``predictions.csv`` into the folder of the results; OSError where the disk takes no more.

        A mask of an earlier run that is still there keeps its lines.
        """
        new = {str(prediction.output) for prediction in self.predictions}
        before = [
            line for line in _lines_in(out / TABLE) if (mask := _mask_of(line)) not in new and (out / mask).is_file()
        ]
        self.of_before = len({line["output"] for line in before})
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, _ALL_COLUMNS)
        writer.writeheader()
        writer.writerows(before)
        writer.writerows(harmless({**line, _MODEL: self.model}) for line in self.lines())
        write_file(out / TABLE, text.getvalue().encode(errors=ENCODING_ERRORS))


def _mask_of(line: Mapping[str, str]) -> str:
    """Return the path that a line of a table names, bytes that are no UTF-8 put back."""
    return re.sub(r"\\udc([89a-f][0-9a-f])", lambda byte: chr(0xDC00 + int(byte[1], 16)), original(line["output"]))


def _lines_in(table: Path) -> list[dict[str, str]]:
    """Return the lines of an earlier run's table; none of what is not there or no such table, which is told."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark at the beginning
            lines = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error):
        lines = [{}]
    usable = [line for line in lines if tuple(line) == _ALL_COLUMNS and None not in line.values()]
    if len(usable) < len(lines):
        warn(f"{table}: lines of earlier masks cannot be read and are left out.")
    return usable
