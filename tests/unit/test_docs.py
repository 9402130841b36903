"""What the documentation repeats of the code is what the code says, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tskd.comparison.grid import load_grid
from tskd.data.layouts import LAYOUTS
from tskd.experiment.budget import BUDGET_RULE
from tskd.recipe.schema import AugmentConfig, Recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_recipes_reference_has_every_key_with_its_default() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", page("reference/recipe.md"), flags=re.S)
    assert yaml.safe_load(block) == Recipe().model_dump(mode="json")


def test_the_recipes_reference_shows_what_the_preset_of_augmentation_stands_for() -> None:
    (block,) = re.findall(r"```\n(augment:.*?)```", page("reference/recipe.md"), flags=re.S)
    assert yaml.safe_load(block)["augment"] == AugmentConfig.model_validate("nnunet").model_dump(mode="json")


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_every_layouts_tree_is_shown(layout: object) -> None:
    assert f"`{layout.name}`\n\n```\n{layout.description}\n```" in page("how-to/other-layouts.md")  # type: ignore[attr-defined]


def test_the_rule_of_the_budget_is_quoted_whole() -> None:
    quoted = " ".join(
        line.removeprefix("> ") for line in page("explanation/baselines.md").splitlines() if line[:1] == ">"
    )
    assert quoted.replace("`", "") == BUDGET_RULE


def test_every_grid_is_named_where_grids_are_listed() -> None:
    listed = page("how-to/compare.md")
    assert [path.stem for path in (ROOT / "recipes/compare").glob("*.yaml") if f"`{path.stem}`" not in listed] == []


def test_every_method_in_the_tables_of_results_has_figures() -> None:
    """A row of a table made by joining runs with the wrong columns has none."""
    rows = [line for line in page("explanation/results-64px.md").splitlines() if line.startswith("| `")]
    assert len(rows) > 40
    assert [row for row in rows if not re.search(r"\d", row.split("|", 2)[2])] == []


def test_the_grid_that_is_shown_can_be_run(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", page("how-to/compare.md"), flags=re.S)
    (tmp_path / "grid.yaml").write_text(block, encoding="utf-8")
    grid = load_grid(tmp_path / "grid.yaml")
    assert (grid.compare, grid.baseline, len(grid.runs)) == ("teacher.rank", 4, 3 * 3 * 2 * 3)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    broken = [
        link for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")) if not leads(path, link)
    ]
    assert broken == []


def leads(path: Path, link: str) -> bool:
    if link.startswith(("http://", "https://")):
        return True
    file, _, anchor = link.partition("#")
    target = (path.parent / file).resolve() if file else path
    return target.exists() and (not anchor or anchor in anchors(target))


def anchors(path: Path) -> set[str]:
    """Return the anchors of headings as GitHub makes them: small letters, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
