"""Does a federation's teacher, or its student, betray which images its sites have trained on?

    python benchmarks/membership.py OUT [OUT ...]

Each argument is the folder of a finished federated run; what its recipe asks for is found there, not made again. At
each site the loss of every training image is held against that of every test image, which no site has trained on: the
AUC is the probability that the trained one of two has the lower loss (Yeom et al. 2018). 0.5 is a coin. Intervals are
bootstraps over cases.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from measure import print_results

from tskd.errors import UserError
from tskd.experiment.methods import METHODS
from tskd.federated.membership import Attack, attacked
from tskd.federated.opening import open_federated
from tskd.metrics.intervals import interval_text
from tskd.recipe.schema import build_recipe
from tskd.run_file import read_run


def main() -> None:
    """Print a line for each model, site and run; exit 2 with one message where an argument is no federated run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    try:
        rows = [row for out in options.runs for row in rows_of(out)]
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print_results(rows, as_json=options.json, threads=torch.get_num_threads())


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Return the lines of one run."""
    found = read_run(out)
    if not found.federated:
        raise UserError(f"{out} is no federated run. Give the --out folder of tskd federate simulate.")
    run = open_federated(build_recipe(found.recipe, str(out)), out)
    models = {"teacher": run.teacher}
    if found.method != "teacher":
        models["student"] = METHODS[found.method].model(run)
    return [
        line(out, name, site, one) for name, model in models.items() for site, one in attacked(run, model).items()
    ]  # fmt: skip


def line(out: Path, model: str, site: str, found: Attack) -> dict[str, Any]:
    """Return one line of the table."""
    return {
        "run": out.name,
        "model": model,
        "site": site,
        "trained on": found.members,
        "never seen": found.others,
        "AUC": round(found.auc, 4),
        "95 % interval": interval_text(found.ci95),
    }


if __name__ == "__main__":
    main()
