"""Sites: the part of a data folder that columns of its split.csv name, as a data set of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tskd.data.files import plain
from tskd.data.layouts import Dataset
from tskd.data.layouts.base import Search
from tskd.data.layouts.folder import FOLDER
from tskd.data.layouts.split_csv import csv_lines
from tskd.errors import UserError

MOST_SHOWN = 12
"""Values of a column that a message lists; of more, which may be patients, it says how many there are."""


def take(dataset: Dataset, where: Mapping[str, Sequence[str]]) -> Dataset:
    """Return the images of a data set that have one of the values in each of the columns of its split.csv.

    Raises UserError where there is no such file or column, where no image has one of the values, and where none has
    all that is asked for.
    """
    path = dataset.root / "split.csv"
    asked = ", ".join(where)
    if dataset.layout != FOLDER.name:
        raise UserError(
            f"{dataset.root}: data.where takes images by columns of split.csv ({asked}) in the layout {FOLDER.name} "
            f"alone, and this is {dataset.layout}. Put the site's images into a folder of their own, or leave "
            "data.where out."
        )
    rows = {plain(row["id"].strip()): row for _, row in csv_lines(path, Search())}
    if not rows:
        raise UserError(
            f"{path}: data.where takes images by a column of this file ({asked}), and it is not there or empty. Write "
            "a line for each image with the columns id, split (it may stay empty) and those."
        )
    columns = [column for column in next(iter(rows.values())) if column]
    for column, values in where.items():
        _refuse_unknown(path, columns, column, values, [row.get(column) or "" for row in rows.values()])
    kept = tuple(record for record in dataset.records if _fits(rows.get(record.id, {}), where))
    if not kept:
        raise UserError(f"{path}: no image has all that data.where asks for at once ({asked}). Ask for less.")
    return replace(dataset, records=kept)


def _fits(row: Mapping[str, str], where: Mapping[str, Sequence[str]]) -> bool:
    return all((row.get(column) or "").strip() in values for column, values in where.items())


def _refuse_unknown(
    path: Path, columns: Sequence[str], column: str, values: Sequence[str], there: Sequence[str]
) -> None:
    if column not in columns:
        raise UserError(f"{path}: there is no column {column!r} for data.where. Choose one of: {', '.join(columns)}.")
    found = Counter(value.strip() for value in there)
    if missing := [value for value in values if value not in found]:
        known = ", ".join(f"{value or 'nothing'} ({count} images)" for value, count in sorted(found.items()))
        listed = f"It has: {known}." if len(found) <= MOST_SHOWN else f"It has {len(found)} other values."
        raise UserError(f"{path}: no image has {', '.join(missing)} in the column {column}. {listed}")
