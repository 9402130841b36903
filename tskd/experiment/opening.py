"""Opening a run: every mistake that can be known is answered before anything heavy is imported or made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tskd.console import say
from tskd.errors import UserError, require_folder
from tskd.experiment.methods import check_names

if TYPE_CHECKING:
    from tskd.experiment.run import Run
    from tskd.recipe.schema import Recipe


def open_run(recipe: Recipe, out: Path, *, minutes: float | None = None, download: bool = False) -> Run:
    """Return the run of a recipe in a folder; UserError where names, networks or the folder cannot be used."""
    check_names(recipe)
    if recipe.federated is not None:
        raise UserError(
            "The recipe has a section federated, and this is a run of one place. Several sites: `tskd federate "
            "simulate`, or `tskd federate server` and `site`. One place: take the section out of the recipe."
        )
    require_folder(out)
    from tskd.engine import open_runtime
    from tskd.experiment.preflight import check_networks, remarks_on_weights
    from tskd.experiment.run import Run

    check_networks(recipe)
    for remark in remarks_on_weights(recipe):
        say(remark)
    return Run(recipe, out, open_runtime(recipe.engine, minutes=minutes), download)
