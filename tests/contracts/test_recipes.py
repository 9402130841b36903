"""Every YAML that is shipped loads, expands and says how it is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tskd.comparison.grid import load_grid
from tskd.experiment.methods import METHODS, check_names
from tskd.federated.opening import check_federated
from tskd.recipe.built_in import describe_all
from tskd.recipe.schema import load_recipe

ROOT = Path(__file__).parents[2] / "recipes"
STRONG = {"imagenet", "unet", "unet_imagenet", "consistency", "copy_paste"}
"""Methods with weights that not every machine has, or trained until they converge: they would take most of the time."""
RECIPES, GRIDS = sorted(ROOT.glob("*.yaml")), sorted((ROOT / "compare").glob("*.yaml"))
FEDERATIONS = sorted((ROOT / "federated").glob("*.yaml"))


def head(path: Path) -> str:
    """The comment at the beginning of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))])


def test_no_yaml_lies_elsewhere() -> None:
    assert RECIPES
    assert len(GRIDS) >= 8
    assert {*RECIPES, *GRIDS, *FEDERATIONS} == set(ROOT.rglob("*.y*ml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads(path: Path) -> None:
    check_names(load_recipe(path))
    assert f"# tskd run {path.stem} " in head(path)


@pytest.mark.parametrize("path", FEDERATIONS, ids=lambda path: path.name)
def test_every_federation_loads(path: Path) -> None:
    pytest.importorskip("flwr")
    check_federated(load_recipe(path))
    assert f"# tskd federate simulate {path.stem} " in head(path)
    assert "Expected: " in head(path)


@pytest.mark.parametrize("name", ["smoke", "paper_table", "labels"])
def test_the_large_grids_have_every_method(name: str) -> None:
    """But for those that are compared by the strong recipe of real.yaml."""
    assert set(load_grid(ROOT / f"compare/{name}.yaml").axes["method"]) == METHODS.keys() - STRONG


def test_the_strong_recipe_has_the_methods_that_the_other_grids_leave_out() -> None:
    assert {run.recipe.method for run in load_grid(ROOT / "compare/real.yaml").runs} >= STRONG


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.name)
def test_every_grid_loads_and_expands(path: Path) -> None:
    grid = load_grid(path)
    assert grid.name == path.stem
    assert len(grid.runs) > 1
    assert grid.compare is not None
    assert any(len(grid.axes[axis]) > 1 for axis in grid.replicates), "without seeds a comparison says little"
    assert f"# tskd compare {path.stem} " in head(path)
    assert "Expected: " in head(path)


def test_what_a_recipe_is_for_is_told_in_whole_sentences() -> None:
    """Heads of two lines were cut after the first; and neither the command nor its cost belongs to them."""
    told = dict(describe_all())
    commands = {"tskd run": RECIPES, "tskd compare": GRIDS, "tskd federate simulate": FEDERATIONS}
    assert told.keys() == {f"{command} {one.stem}" for command, files in commands.items() for one in files}
    for command, text in told.items():
        assert text[-1] in ".?)", command
        assert "tskd " not in text, command
        assert "Expected: " not in text, command
