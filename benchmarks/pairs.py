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
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measure import as_table

from tskd.artifacts import ARTIFACTS
from tskd.errors import UserError
from tskd.metrics.comparison import DICE, pair_test
from tskd.metrics.segmentation import case_means
from tskd.stages.evaluation_files import read_cases

BETWEEN = " | "
"""What joins a run's place in the grid to a column's name: groups first, then the arm, then the seed."""


def keep(out: Path, file: Path, axes: list[str]) -> list[dict[str, Any]]:
    """Add a column to ``file`` for each finished run of the comparison in ``out``; return a row for each.

    Raises UserError where the test cases are not those that the file has.
    """
    table = pd.read_csv(out / "table.csv", dtype=str)
    columns = {
        BETWEEN.join(row[axes]): _dice_by_case(out / ARTIFACTS / row["evaluation"])
        for _, row in table[table["status"] == "done"].iterrows()
    }
    kept = pd.read_csv(file, index_col="case") if file.is_file() else pd.DataFrame()
    for name, dice in columns.items():
        if len(kept) and set(kept.index) != set(dice.index):
            raise UserError(f"{out}: {name} was tested on other cases than those of {file}. Give another file.")
        kept[name] = dice if kept.empty else dice.reindex(kept.index)
    kept.index.name = "case"
    file.parent.mkdir(parents=True, exist_ok=True)
    kept[sorted(kept.columns)].to_csv(file, float_format="%.4f", lineterminator="\n")
    return [{"run": name, "cases": len(dice), "Dice": f"{dice.mean():.4f}"} for name, dice in columns.items()]


def _dice_by_case(evaluation: Path) -> pd.Series:
    means = case_means(read_cases(evaluation), DICE.name)
    return pd.Series(
        {hashlib.sha256(case.encode(errors="surrogateescape")).hexdigest()[:12]: dice for case, dice in means.items()}
    )


def differences(file: Path, baseline: str) -> list[dict[str, Any]]:
    """Return a row for each arm of each group: its trainings' means, and its difference to the baseline."""
    groups: dict[str, dict[str, dict[str, np.ndarray]]] = defaultdict(lambda: defaultdict(dict))
    for name, dice in pd.read_csv(file, index_col="case").items():
        *group, arm, seed = str(name).split(BETWEEN)
        groups[BETWEEN.join(group)][arm][seed] = dice.to_numpy()
    return [
        {
            "group": group,
            "arm": arm,
            "Dice": " / ".join(f"{seeds[one].mean():.3f}" for one in sorted(seeds)),
            **_against(arm, seeds, baseline, arms),
        }
        for group, arms in groups.items()
        for arm, seeds in arms.items()
    ]


def _against(
    arm: str, seeds: dict[str, np.ndarray], baseline: str, arms: dict[str, dict[str, np.ndarray]]
) -> dict[str, Any]:
    shared = sorted(set(seeds) & set(arms.get(baseline, {})))
    if arm == baseline or not shared:
        return {"minus": "", "difference": "", "95 %": "", "seeds": "", "cases": ""}
    test = pair_test((arm, baseline), np.stack([seeds[one] - arms[baseline][one] for one in shared]), DICE, seed=0)
    return {
        "minus": baseline,
        "difference": f"{test.difference:+.3f}",
        "95 %": "" if test.ci95_low is None else f"{test.ci95_low:+.3f} to {test.ci95_high:+.3f}",
        "seeds": test.n_seeds,
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
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(json.dumps({"rows": rows}) if given.json else as_table(rows))


if __name__ == "__main__":
    main()
