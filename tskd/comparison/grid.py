"""The grid: a base recipe and axes of settings; every point of their product is a run, checked before any work."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field

from tskd.artifacts import json_sha256
from tskd.console import counted, warn
from tskd.errors import UserError
from tskd.experiment.methods import check_names
from tskd.recipe.built_in import find_recipe
from tskd.recipe.explanations import shown
from tskd.recipe.files import Change, as_change, current_key, read_settings, read_yaml, set_key
from tskd.recipe.schema import NAMING, PHANTOMS, EngineConfig, Recipe, Section, build_recipe, build_section
from tskd.report.comparison.files import DATASET, METHOD, REPLICATE_KEYS, RESULT_COLUMNS, STATISTICS_COLUMNS

Scalar = str | int | float | bool | None
MACHINE_SETTINGS = frozenset(
    {"accelerator", "devices", "num_nodes", "strategy", "checkpoint_seconds", "threads", "tf32", "compile"}
)
"""Settings of the engine that change no result beyond rounding: a run keeps its name when they change."""


MOST_RUNS = 10_000
"""Of a grid: looking at each takes milliseconds, and training it minutes."""


class GridFile(Section):
    """What a grid's YAML holds."""

    name: str
    recipe: dict[str, Any] | str = Field(default_factory=dict)
    """The settings all runs share: a recipe, the path of one (relative to the grid), or the name of a built-in one."""
    axes: dict[str, list[Any]]
    """Recipe key -> values; or a name of its own -> mappings of a ``name`` and the keys that vary together."""
    compare: str | None = None
    """The axis whose values are tested against each other; None: ``method``, else the first that is not a replicate."""
    baseline: Any = None
    """The value of that axis which all others are tested against; None: every pair is tested."""
    bias_variance: bool = False


@dataclass(frozen=True)
class GridRun:
    """One point of a grid."""

    name: str
    """The method and a hash of the recipe: the same settings have the same name in every grid."""
    point: Mapping[str, Scalar]
    """Axis -> value, for groups of keys their name."""
    recipe: Recipe

    @property
    def label(self) -> str:
        """The point as a person reads it."""
        return ", ".join(f"{axis} {value}" for axis, value in self.point.items())


@dataclass(frozen=True)
class Grid:
    """A grid with all of its runs."""

    name: str
    axes: Mapping[str, tuple[Scalar, ...]]
    replicates: tuple[str, ...]
    """Those of the axes that repeat a measurement."""
    runs: tuple[GridRun, ...]
    compare: str | None
    """The axis whose values are tested against each other; None: nothing varies that could be."""
    baseline: Scalar
    bias_variance: bool
    source: Mapping[str, Any]
    """The file, its ``recipe`` being every setting that all runs share: defaults, and what the command line changed."""

    @property
    def engine(self) -> EngineConfig:
        """Where work for all runs together is done."""
        return EngineConfig(**self.source["recipe"]["engine"])

    @property
    def groups(self) -> tuple[str, ...]:
        """Axes within whose values comparisons are made."""
        return tuple(axis for axis in self.axes if axis not in (*self.replicates, self.compare))


def load_grid(path: Path, changes: Sequence[str | Change] = ()) -> Grid:
    """Return the grid of a YAML file; ``changes`` are made to the recipe that all runs share.

    Raises UserError that names every setting of every run that does not fit.
    """
    made = [as_change(one) for one in changes]
    if not path.is_file():
        raise UserError(f"{path}: no such grid. Give the path of a YAML file with name, recipe and axes.")
    source = read_yaml(path)
    if not isinstance(source, dict):
        raise UserError(f"{path}: a grid is a mapping with name, recipe and axes, not a {type(source).__name__}.")
    file = build_section(GridFile, source, str(path))
    _refuse(path, [*_name_problems(file.name), *_axis_problems(file.axes)])
    axes = {axis: _read_axis(axis, values) for axis, values in file.axes.items()}
    if (count := math.prod(map(len, axes.values()))) > MOST_RUNS:
        raise UserError(
            f"{path}: its axes make {count} runs, of at most {MOST_RUNS}. Give fewer values, or several grids."
        )
    _refuse(path, [*_shared_keys(axes), *_idle_changes(axes, made)])
    base = _base_recipe(file, path, made)
    runs = _expand(path, base, axes)
    _refuse(path, _undecomposed(file, runs))
    names = {axis: tuple(name for name, _ in values) for axis, values in axes.items()}
    replicates = tuple(axis for axis, values in axes.items() if _keys(values) <= REPLICATE_KEYS)
    _say_what_is_no_replicate(axes)
    _refuse(path, _crossed_replicates({axis: names[axis] for axis in replicates}))
    comparable = {axis: values for axis, values in names.items() if axis not in replicates}
    compared = file.compare or _compared_axis(comparable)
    _refuse(path, [_taken(axis) for axis in comparable if axis != compared and axis in STATISTICS_COLUMNS])
    _refuse(path, _comparison_problems(compared, file.baseline, comparable))
    if "baseline" in source and file.baseline is None and None in comparable.get(compared or "", ()):
        raise UserError(
            f"{path}: baseline: null reads as none at all. Name the value, as in `{{name: whole, {compared}: null}}`, "
            "and give `baseline: whole`."
        )
    baseline = next((value for value in comparable.get(compared or "", ()) if value == file.baseline), None)
    return Grid(file.name, names, replicates, runs, compared, baseline, file.bias_variance, source | {"recipe": base})


Axis = list[tuple[Scalar, dict[str, Any]]]
"""Each value's name and the recipe keys it sets."""


def _read_axis(axis: str, values: Sequence[Any]) -> Axis:
    return [
        (value["name"], {current_key(key): one for key, one in value.items() if key != "name"})
        if isinstance(value, dict)
        else (value, {current_key(axis): value})
        for value in values
    ]


def _keys(values: Axis) -> set[str]:
    return {key for _, keys in values for key in keys}


def _name_problems(name: str) -> Iterator[str]:
    if not re.fullmatch(r"\w[\w .-]*", name):
        yield f"name: {name!r} names a folder. Use letters, digits, blanks, '.', '_' and '-', no '.' first"


def _undecomposed(file: GridFile, runs: Sequence[GridRun]) -> Iterator[str]:
    if file.bias_variance and any(run.recipe.federated is not None for run in runs):
        yield (
            "bias_variance: it asks all trained models for the same test images, and those of a federation lie at its "
            "sites. Leave it out, or take federated out of the recipe"
        )


def _axis_problems(axes: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    for axis, values in axes.items():
        if axis in RESULT_COLUMNS:
            yield _taken(axis)
        elif problem := _problem_of_axis(values):
            yield f"axes.{axis}: {problem}"


def _problem_of_axis(values: Sequence[Any]) -> str | None:
    """Return what is wrong with the values of an axis, the first of it."""
    groups = [value for value in values if isinstance(value, dict)]
    names = [group.get("name") for group in groups] or list(values)
    if not values:
        return "no values. Give a list of at least one, or leave the axis out"
    if groups and len(groups) < len(values):
        return "values and mappings are mixed. Give either values, or mappings with a name each"
    if groups and None in names:
        return "every mapping needs a name: it stands for its keys in tables"
    if not all(isinstance(one, Scalar) for one in names):
        return "a value is a number, a text, true, false or null; lists belong into a named mapping"
    twice = [shown(name) for name, count in Counter(names).items() if count > 1]
    return f"{', '.join(twice)} is there twice" if twice else None


def _taken(axis: str) -> str:
    return f"axes.{axis}: tables have a column of that name. Give the axis another"


def _shared_keys(axes: Mapping[str, Axis]) -> Iterator[str]:
    """Name recipe keys that two axes set: the product would hold runs that are not what their row says."""
    setters = Counter(key for values in axes.values() for key in _keys(values))
    yield from (f"axes: {key} is set by {count} axes. Keep it in one" for key, count in setters.items() if count > 1)


def _idle_changes(axes: Mapping[str, Axis], changes: Sequence[Change]) -> Iterator[str]:
    """Name settings of the command line that an axis would overwrite, or that make an axis one of phantoms idle."""
    keys = [(axis, key) for axis, values in axes.items() for key in sorted(_keys(values))]
    for (given, value), (axis, key) in product(changes, keys):
        if _overlap(given, key) or _hides(given, value, key):
            yield f"{given} is given, but the axis {axis} sets {key}. Change the axis in the file"


def _overlap(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _hides(given: str, value: Any, key: str) -> bool:
    """Tell whether a data folder takes the place of the phantoms that an axis draws."""
    section = given.removesuffix("root")
    return given.endswith("data.root") and value != PHANTOMS and f"{key}.".startswith(f"{section}phantom.")


def _say_what_is_no_replicate(axes: Mapping[str, Axis]) -> None:
    for axis, values in axes.items():
        keys = _keys(values)
        if len(values) > 1 and keys & REPLICATE_KEYS and not keys <= REPLICATE_KEYS:
            others = ", ".join(sorted(keys - REPLICATE_KEYS))
            warn(f"axes.{axis} sets {others} beside a seed: its values are tested apart, not as replicates")


def _crossed_replicates(axes: Mapping[str, Sequence[Scalar]]) -> Iterator[str]:
    """Name replicate axes whose product would count runs of one label draw, or of one seed, as independent."""
    if len(several := [axis for axis, values in axes.items() if len(values) > 1]) > 1:
        yield (
            f"axes: {' and '.join(several)} repeat measurements and are crossed: their runs are not independent. Let "
            "them vary together in one axis, such as seed: [{name: 0, seed: 0, data.budget_seed: 0}, ...]"
        )


def _recipe_of(named: str, grid: Path) -> Path:
    """Return the recipe's file: beside the grid or, of a bare name that is not there, a built-in one."""
    beside = grid.parent / named
    return beside if beside.suffix or beside.is_file() else find_recipe(named)


def _base_recipe(file: GridFile, path: Path, changes: Sequence[Change]) -> dict[str, Any]:
    values = read_settings(_recipe_of(file.recipe, path)) if isinstance(file.recipe, str) else _copy(file.recipe)
    for key, value in changes:
        set_key(values, key, value)
    return build_recipe(values, f"{path}: recipe").model_dump(mode="json")


def _expand(path: Path, base: Mapping[str, Any], axes: Mapping[str, Axis]) -> tuple[GridRun, ...]:
    """Return the product of the axes; UserError lists each problem once with the number of runs that have it."""
    runs: dict[str, GridRun] = {}
    problems: Counter[str] = Counter()
    for values in product(*axes.values()):
        point = dict(zip(axes, (name for name, _ in values)))
        try:
            run = _build_run(base, point, [keys for _, keys in values])
        except UserError as error:
            problems.update(_lines(error))
            continue
        if (same := runs.setdefault(run.name, run)) is not run:
            problems[f"'{run.label}' is the same run as '{same.label}'"] += 1
    hidden = _problems_of_values(base, axes) if problems else []
    told = [f"{problem} ({counted(count, 'run')})" for problem, count in problems.items()]
    _refuse(path, [*told, *(problem for problem in hidden if problem not in problems)])
    return tuple(runs.values())


def _problems_of_values(base: Mapping[str, Any], axes: Mapping[str, Axis]) -> list[str]:
    """Return what is wrong with each value by itself: in a run one problem may hide another."""
    problems: list[str] = []
    for values in axes.values():
        for _, keys in values:
            try:
                _build_run(base, {}, [keys])
            except UserError as error:
                problems += _lines(error)
    return problems


def _lines(error: UserError) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if not line.endswith("cannot be used:")]


def _build_run(base: Mapping[str, Any], point: Mapping[str, Scalar], settings: Sequence[Mapping[str, Any]]) -> GridRun:
    values = _copy(base)
    for keys in settings:
        for key, value in keys.items():
            set_key(values, key, value)
    recipe = build_recipe(values, "a run")
    check_names(recipe)
    if recipe.engine.devices * recipe.engine.num_nodes > 1:
        raise UserError("engine.devices, engine.num_nodes: a run of a comparison has one device. Leave them at 1")
    identity = recipe.model_dump(mode="json", exclude={"engine": set(MACHINE_SETTINGS)}, context=NAMING)
    name = json_sha256(identity)[:10]
    return GridRun(f"{recipe.method}-{name}", {METHOD: recipe.method, **point}, recipe)


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in values.items()}


def _compared_axis(axes: Mapping[str, Sequence[Scalar]]) -> str | None:
    candidates = [axis for axis, values in axes.items() if len(values) > 1 and axis != DATASET]
    return METHOD if METHOD in candidates else next(iter(candidates), None)


def _comparison_problems(compared: str | None, baseline: Scalar, axes: Mapping[str, Sequence[Scalar]]) -> Iterator[str]:
    if compared is not None and compared not in axes:
        yield f"compare: {compared!r} is not an axis whose values can be tested. Choose one of: {', '.join(axes)}"
    elif baseline is not None and compared is None:
        yield f"baseline: {shown(baseline)} is given, and no axis has several values to test. Leave it out"
    elif baseline is not None and baseline not in axes.get(compared or "", ()):
        values = ", ".join(map(str, axes.get(compared or "", ())))
        yield f"baseline: {shown(baseline)} is not on the axis {compared}. Choose one of: {values}"


def _refuse(path: Path, problems: Sequence[str] | Iterator[str]) -> None:
    if listed := "".join(f"\n  {problem}" for problem in problems):
        raise UserError(f"{path} cannot be used:{listed}")
