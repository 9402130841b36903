"""Checks, runs and comparisons from Python: the work of the commands, with results to look at and compute with."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tskd.api.model import Model, load
from tskd.api.recipes import as_changes, changes_of, load_recipe
from tskd.api.show import image_html, table_html
from tskd.errors import UserError, require_folder
from tskd.extras import telling_what_is_missing
from tskd.recipe.schema import Recipe, names_folder

if TYPE_CHECKING:
    import pandas
    from PIL import Image

    from tskd.data.check import CheckReport
    from tskd.report.run.folder import RunFolder
    from tskd.run_file import RunFile

PICTURES = 6
"""How many pictures a notebook shows of a run."""


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    out: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))  # a text is as good

    @cached_property
    def _folder(self) -> RunFolder:
        from tskd.report.run.folder import open_run

        return open_run(self.out)

    @property
    def summary(self) -> RunFile:
        """What ``run.json`` holds."""
        return self._folder.summary

    @property
    def scores(self) -> pandas.DataFrame:
        """One row a model: mean Dice with its 95 % interval over cases, distances, and how many cases there were."""
        import pandas

        folder = self._folder
        rows = [{"name": name, "model": folder.title(name), **_scores(folder, name)} for name in folder.models]
        return pandas.DataFrame(rows)

    @property
    def cases(self) -> pandas.DataFrame:
        """One row a model, test image or volume, and class; a score is the mean over cases of each case's mean."""
        import pandas

        from tskd.stages.evaluation_files import read_cases

        folder = self._folder
        scores = {name: read_cases(folder.evaluation(name).path) for name in folder.models}
        return pandas.DataFrame([{"name": name, **row.as_dict()} for name, rows in scores.items() for row in rows])

    @property
    def pictures(self) -> list[Image.Image]:
        """The student's worst, median and best test images, its mask as an area and the expert's as a line; of a
        simulated federation those of each site, one site after the other."""
        from PIL import Image

        return [Image.open(path).copy() for path in self._folder.overlays(self._folder.main)]

    @property
    def report(self) -> Path:
        """The report, one HTML file to be read offline."""
        from tskd.report import REPORT

        return self.out / REPORT

    @cached_property
    def model(self) -> Model:
        """The model to ship; that of a simulated federation is written first, as `tskd export` does.

        Raises UserError where each site has a model of its own, or those of a federation lie at its sites.
        """
        if not self.summary.federated:
            return load(self.out)
        from tskd.federated.bundle import export_simulation

        return load(export_simulation(self.out))

    def _repr_html_(self) -> str:
        shown = "".join(image_html(one, "prediction and mask on a test image") for one in self.pictures[:PICTURES])
        return f"{table_html(self.scores)}{shown}"


@dataclass(frozen=True)
class ComparisonResult:
    """A finished comparison, as its tables hold it."""

    out: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))

    @property
    def table(self) -> pandas.DataFrame:
        """One row a run."""
        from tskd.report.comparison.files import TABLE

        return self._read(TABLE)

    @property
    def tests(self) -> pandas.DataFrame:
        """One row a pair of methods: the difference, its interval over seeds and cases, and p for these trainings."""
        from tskd.report.comparison.files import TESTS

        return self._read(TESTS)

    @property
    def report(self) -> Path:
        """The report, one HTML file to be read offline."""
        from tskd.report import REPORT

        return self.out / REPORT

    def _read(self, name: str) -> pandas.DataFrame:
        import pandas

        if not (self.out / name).is_file():
            raise UserError(f"{self.out}: no finished comparison is there ({name} is missing).")
        # a value of an axis may be called None, and is no missing number
        return pandas.read_csv(self.out / name, keep_default_na=False, na_values=[""])

    def _repr_html_(self) -> str:
        return table_html(self.table[["method", "dice", "dice_ci95_low", "dice_ci95_high", "seconds"]])


def check(folder: str | Path, layout: str | None = None, **data: Any) -> CheckReport:
    """Look at a data folder and return every problem by name; ``data`` as in the recipe's section.

    ``report.usable`` says whether a run can start. Raises UserError where there is nothing to look at.
    """
    from tskd.console import counting
    from tskd.data.check import inspect
    from tskd.data.layouts import LayoutOptions

    if data.get("where"):
        raise UserError("tskd.check looks at all of a folder: leave `where` out.")
    config = load_recipe(None, data=data | ({} if layout is None else {"layout": layout})).data
    with counting("check") as count:
        return inspect(Path(folder), config.layout, progress=count, options=LayoutOptions.of(config.model_dump()))


@telling_what_is_missing("tskd.run")
def run(
    recipe: Recipe | str | Path | None = None,
    data: str | Path | Mapping[str, Any] | None = None,
    out: str | Path = "out",
    *,
    minutes: float | None = None,
    target_minutes: float | None = None,
    **changes: Any,
) -> RunResult:
    """Run the whole method on a data folder, as `tskd run` does; a run that was stopped goes on.

    ``recipe`` is a Recipe, the name of a built-in one (``quick``, ``laptop``, ...), a YAML file, or None: then settings
    are chosen for the data, the weights at hand and this machine, to take about ``target_minutes`` (or 30; without
    data: the defaults, on phantoms). ``data`` is a folder, or settings of that section; ``changes`` are sections or
    ``**{"section.key": value}``. Raises UserError for what cannot be used, and Paused after ``minutes``.
    """
    from tskd.experiment.opening import open_run
    from tskd.experiment.pipeline import execute

    given = {**changes_of(data), **changes}
    stated = as_changes(given)
    require_folder(Path(out))
    if recipe in (None, "auto") and names_folder(stated):
        from tskd.experiment.configure import configure

        settings, keep = configure(stated, Path(out), minutes=target_minutes)
    elif target_minutes is not None:
        raise UserError("target_minutes chooses settings for data without a recipe, and this has its own.")
    else:
        settings, keep = load_recipe(recipe, **given), lambda: None
    opened = open_run(settings, Path(out), minutes=minutes)
    execute(opened, begins=keep)
    return RunResult(Path(out))


@telling_what_is_missing("tskd.compare")
def compare(
    grid: str | Path,
    data: str | Path | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    *,
    workers: int = 1,
    **changes: Any,
) -> ComparisonResult:
    """Run a grid of methods, budgets, seeds and settings, as `tskd compare` does, and return its tables.

    Every run is a process that imports the script which calls this: there, the call belongs under
    ``if __name__ == "__main__":``. Raises UserError for what cannot be used, and in a script without that line.
    """
    _require_guard()
    from tskd.comparison.grid import load_grid
    from tskd.comparison.workflow import Machines
    from tskd.comparison.workflow import compare as compare_all
    from tskd.recipe.built_in import find_grid

    found = load_grid(find_grid(grid), as_changes({**changes_of(data), **changes}))
    folder = Path(out) if out is not None else Path("out/compare") / found.name
    compare_all(found, folder, Machines(workers=workers))
    return ComparisonResult(folder)


def _require_guard() -> None:
    """Raise UserError in a process that has been started for a run and is importing the script that started it."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            "tskd.compare is called again by the process of a run, which imports the script that called it. Put the "
            'call under `if __name__ == "__main__":`, with all that is to be done once.'
        )


def _scores(folder: RunFolder, name: str) -> dict[str, Any]:
    metrics, unit = folder.metrics[name], folder.unit
    low, high = metrics["dice_ci95"] or (None, None)  # none where there are too few cases
    return {
        "dice": metrics["dice"],
        "dice_low": low,
        "dice_high": high,
        "iou": metrics["iou"],
        f"hd95_{unit}": metrics[f"hd95_{unit}"],
        f"assd_{unit}": metrics[f"assd_{unit}"],
        "cases": metrics["n_cases"],
        "missed": metrics["missed"],
        "false_positive": metrics["false_positive"],
    }
