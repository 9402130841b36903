"""Which images are of one patient: what a data set states, and names that look like it where it states nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tskd.data.layouts.base import Search
from tskd.data.layouts.dataset_yaml import DATASET_YAML, read_dataset_yaml
from tskd.data.layouts.split_csv import volume_rows
from tskd.errors import UserError
from tskd.types import Record

_WORDS = (
    r"frame|phase|session|ses|visit|scan|series|run|acq|echo|timepoint|time|tp|baseline|follow-?up|"
    r"t1(?:w|ce|c|gd|n|post)?|t2(?:w|f)?|flair|dwi|adc|swi|pd|ed|es|pre|post|left|right"
)
_WORD = re.compile(rf"(?<=[^/])[_. -]+(?:{_WORDS})(?=[\d_. -]|$)", re.IGNORECASE)
_NUMBER = re.compile(r"^(.*\d.*)([_. -])\d+$")
_MOST_FRAMES, _MOST_NUMBERED = 64, 12  # of one patient; more of one beginning are rather a hospital's patients


def case_of(id: str, pattern: str) -> str | None:
    """Return the case that a case_pattern finds in an id; None where it finds none, or an empty one."""
    match = re.search(pattern, id)
    return (match.group(1) or None) if match else None


def unmatched(id: str, pattern: str) -> str:
    """Return the message on an id in which a case_pattern finds no case."""
    found = "has an empty case by" if re.search(pattern, id) else "does not match"
    return f"the id {id!r} {found} case_pattern {pattern!r} of {DATASET_YAML}."


def with_stated_cases(
    records: Sequence[Record],
    volumes: Mapping[str, Path],
    root: Path,
    search: Search,
    *,
    unknown: str,
    kind: str,
    by_folder: bool,
) -> list[Record]:
    """Return the records of volumes with the cases and splits that dataset.yaml and split.csv state.

    ``volumes`` maps the names that are cases where nothing is stated to a file each; names that look like several scans
    of one patient are then warned of. ``kind`` is what a name is of, in the plural. ``by_folder``: whether
    folders in the names may be patients.
    """
    rows = volume_rows(root, volumes.keys(), search, unknown=unknown)
    try:
        pattern = read_dataset_yaml(root).case_pattern
    except UserError:  # describing the data set says what is wrong
        pattern = None
    cases: dict[str, str] = {}
    for name, path in volumes.items():
        row = rows.get(name)
        if row is not None and row.case is not None:
            cases[name] = row.case
        elif pattern is not None:
            if found := case_of(name, pattern):
                cases[name] = found
            else:
                search.fault(path, unmatched(name, pattern))
    if pattern is None:
        unstated = [name for name in volumes if name not in cases]
        warn_of_folders(unstated if by_folder else (), root, search, kind=kind)
        _warn_of_names(unstated, root, search, kind=kind)
    return [
        replace(
            record,
            case=cases.get(record.case, record.case),
            split=(rows[record.case].split if record.case in rows else None) or record.split,
        )
        for record in records
    ]


def warn_of_folders(ids: Collection[str], root: Path, search: Search, *, kind: str) -> None:
    """Warn where sub-folders hold several images or volumes each, none of which has a stated case."""
    folders = Counter(id.partition("/")[0] for id in ids if "/" in id)
    if len(folders) < 2 or max(folders.values()) < 2:
        return
    inside = sum(folders.values())
    pattern = "^([^/]+)/" if inside == len(ids) else "^([^/]+)"
    _warn(f"{inside} {kind} lie in {len(folders)} sub-folders", "a sub-folder is a patient", pattern, root, search)


def _warn_of_names(names: Collection[str], root: Path, search: Search, *, kind: str) -> None:
    """Warn where names differ in a frame, visit, sequence or last number alone, as scans of one patient do."""
    marks = sorted({found[0] for name in names if (found := _WORD.search(name))}, key=lambda one: (-len(one), one))
    if _look_shared(stems := {name: _before_word(name) for name in names}, _MOST_FRAMES):
        mark = "|".join(re.escape(one).replace(r"\-", "-") for one in marks)
        mark = mark if len(marks) == 1 else f"(?:{mark})"
        patterns = [f"^(.+?){mark}", f"^(.+?)(?:{mark}.*)?$"]
        told = ", ".join(marks)
    elif _look_shared(stems := {name: _before_number(name) for name in names}, _MOST_NUMBERED):
        patterns = [r"^(.+)[_. -]\d+$", r"^(.*?\d.*?)(?:[_. -]\d+)?$"]
        told = "a last number"
    else:
        return
    exact = (one for one in patterns if all(case_of(name, one) == stem for name, stem in stems.items()))
    alike = len(set(stems.values()))
    what = f"{len(names)} {kind} have {alike} names up to {told}"
    _warn(what, "those of one such name are of one patient", next(exact, None), root, search)


def _warn(what: str, condition: str, pattern: str | None, root: Path, search: Search) -> None:
    line = "each one's case into the column case of split.csv"
    if pattern is not None:
        line = f"`case_pattern: '{pattern}'` into {DATASET_YAML}"
    search.fault(
        root,
        f"{what}, each a case of its own: one patient may be in training and in test. If {condition}, write {line}; if "
        f"not, write `case_pattern: '(.+)'` into {DATASET_YAML} to say so.",
        "warning",
    )


def _look_shared(stems: Mapping[str, str], most: int) -> bool:
    """Tell whether names share beginnings that tell patients apart; one beginning of all is the data set's own name."""
    counts = Counter(stems.values())
    return len(counts) > 1 and 2 <= max(counts.values()) <= most


def _before_word(name: str) -> str:
    found = _WORD.search(name)
    return name[: found.start()] if found else name


def _before_number(name: str) -> str:
    found = _NUMBER.search(name)
    return found[1] if found else name
