"""The transfer sets of a comparison: what each is made of, and what its synthetic images look like."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tskd.artifacts import Artifact
from tskd.data.transfer_set import ORIGINS
from tskd.report.blocks import Block, Points, Section, Table, section
from tskd.report.comparison.folder import ComparisonFolder
from tskd.report.pictures import Album
from tskd.report.run.transfer import TransferView, synthetic_blocks

MOST_SHOWN = 4
"""Transfer sets of which synthetic images are shown."""


def transfer_section(comparison: ComparisonFolder, album: Album) -> Section | None:
    """Origins of every transfer set of the first replicate; what is known of synthetic images, and pictures of them."""
    sets = _sets(comparison)
    origins = [origin for origin in ORIGINS if any(origin in view.counts for view in sets.values())]
    rows = tuple((title, *(str(view.counts.get(origin, 0)) for origin in origins)) for title, view in sets.items())
    drawn = {title: view for title, view in sets.items() if view.was_sampled}
    shown = list(drawn.items())[:MOST_SHOWN]
    note = (
        f"Pictures of {len(shown)} of the {len(drawn)} sets with synthetic images." if len(shown) < len(drawn) else ""
    )
    table = Table(("transfer set of", *(f"{origin} images" for origin in origins)), rows, note=note)
    blocks = [_called(title, block) for title, view in shown for block in synthetic_blocks(view, album)]
    lead = "Images without labels on which students learned from a teacher or from themselves; first replicate."
    return section("transfer", "Transfer sets", lead, [table, *blocks])


def _sets(comparison: ComparisonFolder) -> dict[str, TransferView]:
    """Return every transfer set once, by where it was used first."""
    names: dict[Path, str] = {}
    used: dict[Path, Artifact] = {}
    for title, cells in comparison.groups.items():
        found = [(cell, transfer) for cell in cells if (transfer := comparison.transfer(cell))]
        alike = len({transfer.path for _, transfer in found}) == 1
        for cell, transfer in found:
            used[transfer.path] = transfer
            names.setdefault(transfer.path, title if alike else f"{title}, {cell.look.title}")
    return {names[path]: view for path, transfer in used.items() if (view := comparison.view(transfer))}


def _called(title: str, block: Block | None) -> Block | None:
    """Return a block that says whose it is."""
    if block is None or isinstance(block, Points):
        return block
    return replace(block, title=": ".join(filter(None, (title, block.title))))
