"""Folds: the labelled cases dealt out evenly, so that each member of an ensemble is scored on cases it never saw."""

from __future__ import annotations

import numpy as np

from tskd.data.labels import has_foreground
from tskd.data.prepared import Prepared
from tskd.errors import UserError
from tskd.seeding import numpy_generator


def held_out_rows(prepared: Prepared, fold: int, folds: int, *, seed: int) -> np.ndarray:
    """Return the labelled rows, training and validation alike, of the cases in a fold; 0 <= ``fold`` < ``folds``.

    Cases with foreground and cases without are dealt out in turn, each in an order drawn from the seed. Raises
    UserError where there are fewer cases than folds.
    """
    labelled = prepared.rows("train", "val")
    rows_of: dict[str, list[int]] = {}
    for row in labelled.tolist():
        rows_of.setdefault(prepared.records[row].case, []).append(row)
    if len(rows_of) < folds:
        raise UserError(
            f"teacher.members={folds} needs labels of {folds} cases, and the budget has {len(rows_of)} (a case is a "
            "patient or a volume). Lower teacher.members, or label more cases."
        )
    dealt = _shuffled(prepared, rows_of, seed)[fold::folds]
    return np.array(sorted(row for case in dealt for row in rows_of[case]), dtype=np.int64)


def _shuffled(prepared: Prepared, rows_of: dict[str, list[int]], seed: int) -> list[str]:
    generator = numpy_generator(seed, "folds")
    shuffled = [sorted(rows_of)[place] for place in generator.permutation(len(rows_of))]
    # a stable sort keeps the order
    return sorted(shuffled, key=lambda case: not has_foreground(prepared.masks[rows_of[case]]))
