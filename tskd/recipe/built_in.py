"""The recipes and grids that come with the package, found by their names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from tskd.errors import UserError

FOLDER = Path(__file__).parent.parent / "recipes"
GRIDS = FOLDER / "compare"
FEDERATIONS = FOLDER / "federated"


def find_recipe(recipe: str | Path) -> Path:
    """Return the file of a recipe that is named or given as a path; UserError lists the names."""
    return _find(recipe, FOLDER, "recipe")


def find_federation(recipe: str | Path) -> Path:
    """Return the file of a federated recipe that is named or given as a path; UserError lists the names."""
    return _find(recipe, FEDERATIONS, "federated recipe")


def find_grid(grid: str | Path) -> Path:
    """Return the file of a comparison's grid that is named or given as a path; UserError lists the names."""
    return _find(grid, GRIDS, "grid")


def describe_all() -> Iterator[tuple[str, str]]:
    """Yield each recipe's and each grid's command and what the head comment says it is for."""
    for folder, command in ((FOLDER, "tskd run"), (GRIDS, "tskd compare"), (FEDERATIONS, "tskd federate simulate")):
        for path in sorted(folder.glob("*.yaml")):
            yield f"{command} {path.stem}", _head(path)


def _find(given: str | Path, folder: Path, what: str) -> Path:
    path = Path(given)
    if path.suffix or (path.exists() and not path.is_dir()):  # a folder of that name: `--out quick` leaves one
        return path
    built_in = folder / f"{given}.yaml"
    if len(path.parts) != 1 or not built_in.is_file():
        known = ", ".join(sorted(one.stem for one in folder.glob("*.yaml")))
        raise UserError(
            f"{what} {str(given)!r} is not known. Give a YAML file, or one of: {known} (`tskd recipes` describes them)."
        )
    return built_in


def _head(path: Path) -> str:
    """Return what a file is for: its head comment up to the line of the command to start it with."""
    with path.open(encoding="utf-8") as file:
        lines = (line.removeprefix("#").strip() for line in file)
        return " ".join(takewhile(lambda line: not line.startswith("tskd "), lines))
