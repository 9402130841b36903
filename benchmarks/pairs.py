"""Which training is better, and how sure is that? Paired differences of Dice from the scores of single cases alone.

    python benchmarks/pairs.py keep OUT docs/explanation/scores/busi-112px.csv --axes data.labels arm seed
    python benchmarks/pairs.py test docs/explanation/scores/busi-112px.csv --baseline task_kd

``keep`` takes the scores of every finished run of a comparison's folder (its table.csv) into one small file: a row a
test case, under a digest of its name, and a column a run. Further folders, of other machines or days, add columns, as
long as their test cases are the same. ``test`` asks of that file what `tskd compare` asks of the runs themselves,
which may be gone: the mean of each training, and each arm's difference to the baseline over the seeds that both have,
seeds and cases drawn anew together.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measure import as_table

from tskd.artifacts import ARTIFACTS
from tskd.comparison.job import state_path
from tskd.errors import UserError
from tskd.metrics.comparison import DICE, pair_test
from tskd.metrics.segmentation import case_means
from tskd.stages.evaluation_files import read_cases

BETWEEN = " | "
"""What joins a run's place in the grid to a column's name: groups first, then the arm, then the seed."""
ROUNDING = 1e-4
"""Of the scores that are kept."""


def keep(out: Path, file: Path, axes: list[str]) -> list[dict[str, Any]]:
    """Add a column to ``file`` for each finished run of the comparison in ``out``; return a row for each.

    Raises UserError where runs cannot be told apart by their axes, or do not fit what the file has: other axes, other
    test images or cases, or other scores under the same name.
    """
    columns = _columns(out, axes)
    kept = pd.read_csv(file, index_col="case") if file.is_file() else pd.DataFrame()
    for name, dice in columns.items():
        _check_fits(name, dice, kept, file)
        kept[name] = dice if kept.empty else dice.reindex(kept.index)
    kept.index.name = "case"
    file.parent.mkdir(parents=True, exist_ok=True)
    kept[sorted(kept.columns)].to_csv(file, float_format="%.4f", lineterminator="\n")
    return [{"run": name, "cases": len(dice), "Dice": f"{dice.mean():.4f}"} for name, dice in columns.items()]


def _columns(out: Path, axes: list[str]) -> dict[str, pd.Series]:
    """Return the Dice of each case, by the run's place in the grid."""
    table = pd.read_csv(out / "table.csv", dtype=str, keep_default_na=False)
    if missing := [axis for axis in axes if axis not in table.columns]:
        raise UserError(f"{out / 'table.csv'} has no column {', '.join(missing)}.")
    done = table[table["status"] == "done"]
    names = [BETWEEN.join(row) for row in done[axes].itertuples(index=False)]
    if not names:
        raise UserError(f"{out}: no run is finished.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{out}: several runs are {', '.join(twice)}. Name the axis in which they differ in --axes.")
    if any(name.count(BETWEEN) + 1 != len(axes) for name in names):
        raise UserError(f"{out}: a value of {', '.join(axes)} has '{BETWEEN}' in it, which separates them.")
    return {name: _dice_by_case(out, run) for name, (_, run) in zip(names, done.iterrows(), strict=True)}


def _dice_by_case(out: Path, run: pd.Series) -> pd.Series:
    """Return the Dice of each case under a digest of its name, of all test images and of what was scored."""
    rows = read_cases(out / ARTIFACTS / run["evaluation"])
    images = json.loads(state_path(out, run["run"]).read_text(encoding="utf-8"))["row"]["images"]
    digest = {
        case: hashlib.sha256(f"{images} {rows[0].level} {case}".encode(errors="surrogateescape")).hexdigest()[:12]
        for case in case_means(rows, DICE.name)
    }
    return pd.Series({digest[case]: dice for case, dice in case_means(rows, DICE.name).items()})


def _check_fits(name: str, dice: pd.Series, kept: pd.DataFrame, file: Path) -> None:
    if kept.empty:
        return
    if set(kept.index) != set(dice.index):
        raise UserError(f"{name} was tested on other images or cases than those of {file}. Give another file.")
    if str(kept.columns[0]).count(BETWEEN) != name.count(BETWEEN):
        raise UserError(f"{file} names its runs as '{kept.columns[0]}', which '{name}' does not fit: other --axes.")
    if name in kept and (kept[name] - dice).abs().max() > ROUNDING:
        raise UserError(
            f"{file} has other scores of {name} already. Give another file, or an axis that tells them apart."
        )


def differences(file: Path, baseline: str) -> list[dict[str, Any]]:
    """Return a row for each arm of each group: its trainings' means, and its difference to the baseline.

    Raises UserError where no group has the baseline.
    """
    groups: dict[str, dict[str, dict[str, np.ndarray]]] = defaultdict(lambda: defaultdict(dict))
    for name, dice in pd.read_csv(file, index_col="case").items():
        *group, arm, seed = str(name).split(BETWEEN)
        groups[BETWEEN.join(group)][arm][seed] = dice.to_numpy()
    if not any(baseline in arms for arms in groups.values()):
        raise UserError(
            f"{file} has no {baseline}, but {', '.join(sorted({arm for arms in groups.values() for arm in arms}))}."
        )
    return [
        {
            "group": group,
            "arm": arm,
            **{
                "seeds": ", ".join(_ordered(seeds)),
                "Dice": " / ".join(f"{seeds[one].mean():.3f}" for one in _ordered(seeds)),
            },
            **_against(arm, seeds, baseline, arms),
        }
        for group, arms in groups.items()
        for arm, seeds in arms.items()
    ]


def _ordered(seeds: Iterable[str]) -> list[str]:
    """Return seeds by their number: 10 comes after 2."""
    return sorted(seeds, key=lambda seed: (len(seed), seed))


def _against(
    arm: str, seeds: dict[str, np.ndarray], baseline: str, arms: dict[str, dict[str, np.ndarray]]
) -> dict[str, Any]:
    shared = sorted(set(seeds) & set(arms.get(baseline, {})))
    if arm == baseline or not shared:
        return {"minus": "", "difference": "", "95 %": "", "over seeds": "", "cases": ""}
    test = pair_test((arm, baseline), np.stack([seeds[one] - arms[baseline][one] for one in shared]), DICE, seed=0)
    return {
        "minus": baseline,
        "difference": f"{test.difference:+.3f}",
        "95 %": "" if test.ci95_low is None else f"{test.ci95_low:+.3f} to {test.ci95_high:+.3f}",
        "over seeds": test.n_seeds,
        "cases": test.n_cases,
    }


def main() -> None:
    """Keep scores, or test what was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    keeping = commands.add_parser("keep", help="add the scores of a comparison's runs to a file")
    keeping.add_argument("out", type=Path, help="the comparison's folder")
    keeping.add_argument("file", type=Path)
    keeping.add_argument(
        "--axes", nargs="+", required=True, help="columns of table.csv: groups, then the arm, then the seed"
    )
    testing = commands.add_parser("test", help="the differences to a baseline")
    testing.add_argument("file", type=Path)
    testing.add_argument("--baseline", required=True)
    for command in (keeping, testing):
        command.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        kept = given.command == "keep"
        rows = keep(given.out, given.file, given.axes) if kept else differences(given.file, given.baseline)
    except (UserError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(json.dumps({"rows": rows}) if given.json else as_table(rows))


if __name__ == "__main__":
    main()
