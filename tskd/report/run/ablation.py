"""What students make of their encoder: their Dice beside that with a part of them switched off in the test."""

from __future__ import annotations

from collections.abc import Mapping

from tskd.report.blocks import Section, Table, section
from tskd.report.comparison.folder import Cell, ComparisonFolder
from tskd.report.run.folder import STUDENT, RunFolder
from tskd.report.text import NOTHING, capital, dice_of, number, signed

PARTS = {
    "features_zeroed": "features set to zero",
    "features_of_another_image": "features of another image",
    "skips_zeroed": "skip sees no image",
}
"""Ablation -> its title."""
IDLE = 0.02
"""A student that loses no more Dice than this without its encoder's features is said to do without them."""
_LEAD = (
    "Mean Dice on the same test images when a part of the trained student is switched off: its encoder's features are "
    "zeros, or those of another case's image, or the decoder's skip from the image sees none. What a student does not "
    "miss it does not use."
)


def uses_sentence(dice: float | None, ablation: Mapping[str, float | None]) -> str | None:
    """Return in a sentence whether a network uses its encoder; None where it has none that could be switched off."""
    without = ablation.get("features_zeroed")
    if without is None or dice is None:
        return None
    said = f"Without its encoder's features the shipped model scores {number(without)} ({signed(without - dice)})"
    return f"{said}: it does without its encoder." if dice - without <= IDLE else f"{said}."


def run_uses_section(run: RunFolder) -> Section | None:
    """The shipped student's ablation."""
    ablation: Mapping[str, float | None] = run.summary.ablation
    dice = run.metrics[STUDENT]["dice"]
    said = uses_sentence(dice, ablation)
    if said is None:
        return None
    rows = [("as it is", number(dice), "")]
    rows += [(title, number(ablation[part]), _change(ablation[part], dice)) for part, title in PARTS.items()]
    absent = f" {NOTHING} : it has no such part." if None in ablation.values() else ""
    table = Table((f"the {run.title(STUDENT)}", dice_of(run.level), "change"), tuple(rows), note=said + absent)
    return section("uses", "What the student uses", _LEAD, [table])


def comparison_uses_section(comparison: ComparisonFolder) -> Section | None:
    """The ablation of all that is compared, a table a setting."""
    tables = [_table(title, cells) for title, cells in comparison.groups.items()]
    return section("uses", "What the students use", _LEAD, [table for table in tables if table is not None])


def _table(title: str, cells: list[Cell]) -> Table | None:
    known = [cell for cell in cells if cell.mean("dice_features_zeroed") is not None]
    rows = tuple(
        (capital(cell.look.title), number(cell.dice), *(number(cell.mean(f"dice_{part}")) for part in PARTS))
        for cell in known
    )
    return Table(("", "as it is", *PARTS.values()), rows, title=title) if rows else None


def _change(value: float | None, dice: float) -> str:
    return "" if value is None else signed(value - dice)
