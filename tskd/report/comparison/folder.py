"""A comparison as its folder holds it: one row a run, grouped into settings, averaged over seeds."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from tskd.artifacts import ARTIFACTS, MADE_FROM, MANIFEST, Artifact, find_damage, finished, finished_in
from tskd.cells import original
from tskd.data.prepared import RECORDS, Prepared
from tskd.errors import UserError
from tskd.machine.disk import read_object
from tskd.metrics.comparison import difference_interval
from tskd.metrics.segmentation import case_means
from tskd.report.comparison.files import COMPARISON, DATASET, FIGURES, METHOD, TABLE
from tskd.report.pictures import Predictions
from tskd.report.run.transfer import TransferView, view_transfer
from tskd.report.styles import Look, look_of, ordered
from tskd.stages.evaluation_files import read_cases

_NEEDED = frozenset({"name", "axes", "replicates", "grid", "budget_rule", "runs", "failed"})
_COLUMNS = ("run", "status", "method", "title", "dataset", "dice", "n_cases", "evaluation")

Line = Mapping[str, Any]
"""A row of a table: a number or None in the columns of ``FIGURES``, else a text."""
Setting = tuple[str, ...]
"""The data set and the values of the axes that vary, method and replicates aside."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One method in one setting, over its replicates: runs that differ in seed and label draw."""

    method: str
    look: Look
    runs: pandas.DataFrame
    """Rows of the table, one a replicate."""
    interval: tuple[float, float] | None
    """95 % interval of mean Dice over replicates and cases; None: too few cases, or their scores are gone."""

    def mean(self, column: str) -> float | None:
        """Return the mean of a column over replicates; None where it is not there."""
        return _number(self.runs[column].mean()) if column in self.runs else None

    @property
    def first(self) -> Line:
        """The row of its first replicate."""
        return _lines(self.runs)[0]

    @property
    def level(self) -> str:
        """What its scores are of: ``volume``, or ``image``, as in tables from before volumes were scored."""
        return str(self.first.get("level") or "image")

    @property
    def dice(self) -> float:
        return float(self.runs["dice"].mean())


@dataclass(frozen=True)
class ComparisonFolder:
    """The folder of a comparison."""

    path: Path
    description: Mapping[str, Any]
    """What ``comparison.json`` holds."""
    runs: pandas.DataFrame
    """What ``table.csv`` holds, read by :func:`read_table`."""

    @property
    def failed(self) -> list[Line]:
        """The runs without a score."""
        return _lines(self.runs[self.runs["dice"].isna()])

    @property
    def axes(self) -> tuple[str, ...]:
        """The columns that say what varies, beside data set, method and replicates."""
        return tuple(name for name in self._between if name not in self.description["replicates"])

    def axes_that_set(self, keys: Collection[str]) -> tuple[str, ...]:
        """Return the axes whose values set one of these keys, under whatever name."""
        stated = self.description["grid"].get("axes", {})
        names = {
            axis for axis in self.axes for one in stated.get(axis, ()) if isinstance(one, dict) and {*one} & {*keys}
        }
        return tuple(axis for axis in self.axes if axis in keys or axis in names)

    @property
    def replicates(self) -> tuple[str, ...]:
        """The columns over which means are taken."""
        return tuple(name for name in self._between if name in self.description["replicates"])

    @property
    def _between(self) -> list[str]:
        columns = list(map(str, self.runs))
        return columns[columns.index(DATASET) + 1 : columns.index("dice")]

    @property
    def method_titles(self) -> dict[str, str]:
        """What tables call each method: its name alone where its runs failed, or where several have one title."""
        titled = self.runs[self.runs["title"] != ""]
        titles = dict(zip(titled[METHOD], titled["title"]))
        names = {name: name for name in self.runs[METHOD]}
        counts = Counter(titles.values())
        return names | {name: title for name, title in titles.items() if counts[title] == 1}

    @cached_property
    def cells(self) -> dict[Setting, list[Cell]]:
        """Every method in every setting, methods in the order of tables."""
        scored = self.runs.dropna(subset=["dice"])
        settings = scored.groupby([DATASET, *self.axes], sort=False)
        by_method: dict[Setting, dict[str, pandas.DataFrame]] = {
            tuple(map(str, key)): {str(name): one for name, one in runs.groupby(METHOD, sort=False)}
            for key, runs in settings
        }
        return {
            setting: [self._cell(name, methods[name]) for name in ordered(methods)]
            for setting, methods in sorted(by_method.items(), key=lambda group: _in_order(group[0]))
        }

    @property
    def compared(self) -> str:
        """The column whose values are tested against each other."""
        column = self.description.get("compare")
        return column if column in self.axes else METHOD

    @cached_property
    def groups(self) -> dict[str, list[Cell]]:
        """Title -> the cells that are compared with each other, each called by what tells it from the others.

        Where another axis than the method is compared, settings that differ in it alone are one group.
        """
        if self.compared == METHOD:
            return {self.title(setting): cells for setting, cells in self.cells.items()}
        place = self.axes.index(self.compared) + 1
        order = ["" if value is None else str(value) for value in self.description["axes"].get(self.compared, ())]
        places = {value: number for number, value in enumerate(order)}
        by_value = sorted(self.cells.items(), key=lambda item: places.get(item[0][place], len(places)))
        groups: dict[str, list[Cell]] = {}
        for setting, cells in by_value:
            title = self._words(setting[0], zip(self.axes, setting[1:]), without=self.compared)
            groups.setdefault(title, []).extend(self._named(cell, setting[place]) for cell in cells)
        return {title: self._by_method(cells) for title, cells in groups.items()}

    @property
    def first_groups(self) -> dict[str, list[Cell]]:
        """Title -> the first group of each data set."""
        first: dict[str, tuple[str, list[Cell]]] = {}
        for title, cells in self.groups.items():
            first.setdefault(cells[0].first[DATASET], (title, cells))
        return dict(first.values())

    def called(self, value: str) -> str:
        """Return what a value of the compared axis is called: ``LoRA rank 4``, or a name of the grid's own as it is."""
        return value_title(self.compared, "" if value == "None" else value) if "." in self.compared else value

    def _named(self, cell: Cell, value: str) -> Cell:
        """Return the cell called by its value of the compared axis, after its method where there are several."""
        called = self.called(value)
        title = f"{cell.look.title}, {called}" if len(self.method_titles) > 1 else called
        return replace(cell, look=cell.look._replace(title=title))

    def _by_method(self, cells: list[Cell]) -> list[Cell]:
        places = {method: place for place, method in enumerate(ordered(self.method_titles))}
        return sorted(cells, key=lambda cell: places[cell.method])

    def title(self, setting: Setting) -> str:
        """Return a setting in words: the data set, then every axis with its value."""
        return self._words(setting[0], zip(self.axes, setting[1:]))

    def _words(self, dataset: str, values: Iterable[tuple[str, str]], *, without: str = "") -> str:
        return ", ".join([dataset, *(value_title(axis, value) for axis, value in values if axis != without)])

    def table(self, name: str) -> list[Line]:
        """Return the rows of another table of the folder; none where it was not written."""
        return _lines(read_table(self.path / name)) if (self.path / name).is_file() else []

    def predictions(self, cell: Cell) -> Predictions | None:
        """Return what a method predicted in its first replicate; None where that or the data it scored are gone."""
        artifact, title = self._evaluation(cell.first), cell.look.title
        prepared = self._prepared(artifact.manifest["inputs"]["data"]) if artifact else None
        return Predictions(title, title, artifact.path, prepared) if artifact and prepared else None

    def looks(self, cells: Sequence[Cell]) -> list[Look]:
        """Return how each cell's lines are drawn: as its method, or one by one where values of an axis are compared."""
        looks = [cell.look for cell in cells]
        if self.compared == METHOD:
            return looks
        return [look._replace(colour=number % 8, dashed=number >= 8) for number, look in enumerate(looks)]

    def evaluations(self, cell: Cell) -> dict[str, Artifact]:
        """Return the scores of a cell's runs by replicate; those that are gone or damaged are left out."""
        found = {
            ", ".join(str(line[name]) for name in self.replicates): self._evaluation(line) for line in _lines(cell.runs)
        }
        return {name: one for name, one in found.items() if one is not None}

    def rounds(self, cell: Cell) -> list[Mapping[str, Any]]:
        """Return what went between a federation's sites and its server in the first replicate; nothing was: none."""
        return next((one.metrics["rounds"] for one in self.trainings(cell) if "rounds" in one.metrics), [])

    def _prepared(self, digest: str) -> Prepared | None:
        """Return the prepared data with these contents; None where they are gone, damaged, or at sites."""
        if digest not in self._looked_up:
            found = self._by_digest.get(digest)
            there = found is not None and (found.path / RECORDS).is_file() and not any(find_damage(found))
            self._looked_up[digest] = Prepared(found.path) if found is not None and there else None
        return self._looked_up[digest]

    @cached_property
    def _looked_up(self) -> dict[str, Prepared | None]:
        return {}

    def trainings(self, cell: Cell) -> list[Artifact]:
        """Return a cell's model in its first replicate and the trainings it came from, the first of them first."""
        state = read_object(self.path / "runs" / f"{cell.first['run']}.json") or {}
        name = state.get("artifacts", {}).get("model")  # none where the run was tried again since, and failed
        model = finished(self.path / ARTIFACTS / name) if name else None
        found = [model] if model else []
        for artifact in found:  # grows while it is read
            inputs = artifact.manifest["inputs"]
            found += [self._by_digest[inputs[name]] for name in MADE_FROM if inputs.get(name) in self._by_digest]
        return found[::-1]

    def transfer(self, cell: Cell) -> Artifact | None:
        """Return the transfer set that a cell's model learned from in its first replicate; None: it did without one."""
        digests = (artifact.manifest["inputs"].get("transfer") for artifact in self.trainings(cell))
        return next((self._by_digest[digest] for digest in digests if digest in self._by_digest), None)

    def diffusion(self, cell: Cell) -> tuple[Artifact, ...]:
        """Return the trainings of the diffusion model that a cell's transfer set has images of."""
        transfer = self.transfer(cell)
        view = self.view(transfer) if transfer else None
        return view.diffusion if view else ()

    def view(self, transfer: Artifact) -> TransferView | None:
        """Return a transfer set with its data and what is known of it; None where it or its data are damaged."""
        if transfer.path not in self._views:
            self._views[transfer.path] = self._view(transfer)
        return self._views[transfer.path]

    @cached_property
    def _views(self) -> dict[Path, TransferView | None]:
        return {}

    def _view(self, transfer: Artifact) -> TransferView | None:
        prepared = self._prepared(transfer.manifest["inputs"]["data"])
        if prepared is None or any(find_damage(transfer)):
            return None
        return view_transfer(transfer, prepared, self._by_digest.values())

    @cached_property
    def _by_digest(self) -> dict[str, Artifact]:
        """All that a model may come from: not a fine-tuning, which has its start's digest where it kept that."""
        artifacts = finished_in(self.path / ARTIFACTS)
        return {one.digest: one for one in artifacts if one.manifest["stage"] != "finetune"}

    def data_digest(self, cell: Cell) -> str | None:
        """Return the digest of the prepared data that a cell was scored on; None where its scores are gone."""
        evaluation = self._evaluation(cell.first)
        return str(evaluation.manifest["inputs"]["data"]) if evaluation else None

    def _evaluation(self, line: Line) -> Artifact | None:
        """Return the scores of a run, their files looked at once; None where they are gone or damaged."""
        name = line["evaluation"]
        if name not in self._evaluations:
            artifact = Artifact(self.path / ARTIFACTS / name)
            whole = name and (artifact.path / MANIFEST).is_file() and not any(find_damage(artifact))
            self._evaluations[name] = artifact if whole else None
        return self._evaluations[name]

    @cached_property
    def _evaluations(self) -> dict[str, Artifact | None]:
        return {}

    def _cell(self, method: str, runs: pandas.DataFrame) -> Cell:
        runs = runs.sort_values(list(self.replicates), kind="stable") if self.replicates else runs
        look = look_of(method, self.method_titles[method], place=list(self.method_titles).index(method))
        return Cell(method, look, runs, self._interval(_lines(runs)))

    def _interval(self, lines: Sequence[Line]) -> tuple[float, float] | None:
        """Return the interval of mean Dice, within 0 and 1, by a bootstrap over replicates and cases, equal in all."""
        found = [self._evaluation(line) for line in lines]
        scores = [case_means(read_cases(artifact.path), "dice") for artifact in found if artifact]
        if len(scores) < len(lines) or len({tuple(one) for one in scores}) != 1:
            return None
        bounds = difference_interval(np.array([list(one.values()) for one in scores]), seed=0)
        return None if bounds is None else (max(bounds[0], 0.0), min(bounds[1], 1.0))


def axis_title(axis: str) -> str:
    """Return what an axis is called in a sentence."""
    return _AXES.get(axis, axis)


def value_title(axis: str, value: str) -> str:
    """Return an axis with its value: ``20 labelled images``, ``LoRA rank 4``."""
    title, word = axis_title(axis), value_word(axis, value)
    return f"{word} {title}" if _counts(title) else f"{title} {word}"


def value_word(axis: str, value: str) -> str:
    """Return a value; an empty one is all that there are of what is counted, else none."""
    return value or ("all" if _counts(axis_title(axis)) else "none")


def _counts(title: str) -> bool:
    return title.endswith(("images", "cases"))


_AXES = {
    "dataset": "data set",
    "data.labels": "labelled images",
    "data.label_cases": "labelled cases",
    "transfer.real": "real transfer images",
    "transfer.synthetic": "synthetic transfer images",
    "transfer.augmented": "augmented transfer images",
    "teacher.rank": "LoRA rank",
    "federated.strategy": "strategy",
}


def open_comparison(path: Path) -> ComparisonFolder:
    """Return the comparison in a folder. Raises UserError where its files are missing or not what they should be."""
    try:
        description = json.loads((path / COMPARISON).read_text(encoding="utf-8"))
        runs = read_table(path / TABLE)
    except (OSError, ValueError) as error:
        raise _damaged(path, f"{COMPARISON} or {TABLE} cannot be read") from error
    if missing := sorted(_NEEDED - description.keys() if isinstance(description, dict) else _NEEDED):
        raise _damaged(path, f"{COMPARISON} lacks {', '.join(missing)}")
    if missing := [name for name in _COLUMNS if runs.empty or name not in runs]:
        raise _damaged(path, f"{TABLE} has no rows, or lacks {', '.join(missing)}")
    if doubt := next(_doubts(path, _lines(runs)), None):
        raise _damaged(path, doubt)
    return ComparisonFolder(path, description, runs)


def _doubts(path: Path, lines: Iterable[Line]) -> Iterator[str]:
    """Yield where a line of the table says another score than the evaluation it names, if that is there."""
    for line in lines:
        evaluation = finished(path / ARTIFACTS / line["evaluation"]) if line["evaluation"] else None
        measured = evaluation.metrics if evaluation else {}
        for name in measured.keys() & line.keys():
            if line[name] is not None and isinstance(measured[name], int | float) and line[name] != measured[name]:
                yield f"{name} of {line['run']} in {TABLE} is not that of {ARTIFACTS}/{line['evaluation']}"


def as_number(value: str) -> float | None:
    """Return the number that an axis' value is; None where it is none."""
    try:
        return float(value)
    except ValueError:
        return None


def _in_order(setting: Setting) -> tuple[tuple[bool, float, str], ...]:
    """Sort numbers as numbers, before words."""
    numbers = [as_number(value) for value in setting]
    return tuple((number is None, number or 0.0, value) for number, value in zip(numbers, setting))


def read_table(path: Path) -> pandas.DataFrame:
    """Return a table of a comparison, figures as numbers (nan: an empty field) and all else as it was written.

    Raises ValueError where a figure is not a number or rows have other lengths than the head.
    """
    empty = {name: [""] for name in FIGURES}
    frame = pandas.read_csv(path, dtype=str, keep_default_na=False, na_values=empty, float_precision="round_trip")
    if not isinstance(frame.index, pandas.RangeIndex):  # pandas takes what is too much for names of rows
        raise ValueError("rows have more fields than the head")
    for name in frame:
        frame[name] = frame[name].astype(float) if name in FIGURES else frame[name].map(original)
    return frame


def _lines(frame: pandas.DataFrame) -> list[Line]:
    """Return the rows of a table, an empty figure as None."""
    return [{str(name): _number(one) for name, one in line.items()} for line in frame.to_dict("records")]


def _number(value: Any) -> Any:
    """Return a value, nan as None."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}. Run `tskd compare` with the same grid again: it makes what is missing.")
