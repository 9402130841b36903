"""split.csv: the part of each image or volume, and its case, as a data folder states them line by line."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tskd.data.files import is_beside, plain
from tskd.data.layouts.base import Search, fault_of
from tskd.data.reading import reading
from tskd.errors import UserError

SPLIT_CSV = "split.csv"
SPLITS = ("train", "val", "test")
CASE_COLUMNS = ("case", "subject")


@dataclass(frozen=True)
class StatedVolume:
    """What a line says of a volume; None: nothing."""

    line: int
    split: str | None
    case: str | None


def volume_rows(root: Path, names: Collection[str], search: Search, *, unknown: str) -> dict[str, StatedVolume]:
    """Read the split.csv of volumes, by name; lines that cannot be used are faults.

    ``unknown`` says what a name that is none of ``names`` should have been.
    """
    rows: dict[str, StatedVolume] = {}
    for line, row in csv_lines(root / SPLIT_CSV, search):
        name, split = plain(row["id"].strip()), row["split"].strip()
        problem = split_problem(split)
        if name in rows:
            problem = f"the id {name!r} was given before, in line {rows[name].line}."
        elif name not in names:
            problem = f"the id {name!r} is unknown: {unknown}."
        elif cell(row, "volume") or cell(row, "slice"):
            problem = "volume and slice are of single images; here the files say what a volume is. Leave them empty."
        if problem is not None:
            search.fault(root / SPLIT_CSV, f"line {line}: {problem}")
            continue
        rows[name] = StatedVolume(line, split or None, cell(row, *CASE_COLUMNS) or None)
    return rows


def split_problem(split: str) -> str | None:
    """Return what is wrong with the name of a part; None where it is one, or empty."""
    return f"split {split!r} is not one of {', '.join(SPLITS)} or empty." if split and split not in SPLITS else None


def cell(row: Mapping[str, str], *names: str) -> str:
    """Return the first of the columns that says something."""
    return next((text for name in names if (text := (row.get(name) or "").strip())), "")


def csv_lines(path: Path, search: Search) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row) of a CSV with a header; a byte order mark is skipped."""
    try:
        if not is_beside(path):
            return
        with reading(path, _explain_csv), path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            header = reader.fieldnames or []
            if not {"id", "split"} <= set(header):
                named = ",".join(header)
                search.fault(path, f"line 1 is {named!r}; the columns id and split, set off by commas, are needed.")
                return
            for row in reader:
                yield reader.line_num, row
    except UserError as error:
        search.faults.append(fault_of(error, path))


def _explain_csv(error: BaseException) -> str | None:
    known = isinstance(error, UnicodeDecodeError | csv.Error)
    return f"is not a readable CSV file in UTF-8 ({error}). Save it as CSV in UTF-8." if known else None
