"""What a run will do and for how long, told before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tskd.console import counted, duration
from tskd.experiment.facts import Facts, look
from tskd.experiment.methods import require_small
from tskd.experiment.pace import Pace, Part
from tskd.recipe.schema import PHANTOMS, DataConfig, Recipe
from tskd.stages.source_data import draw_phantoms, open_data

_UNTIMED = "training the diffusion model and sampling from it, which come on top, were not timed"


@dataclass(frozen=True)
class Outlook:
    """What a run looks at, trains and takes."""

    labelled: int
    tested: int
    unlabelled: int
    parts: tuple[Part, ...]
    remark: str = ""

    @property
    def minutes(self) -> float:
        """Of trainings and answers; reading, scores and export take some minutes more."""
        return sum(part.minutes for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self) | {"parts": [part._asdict() for part in self.parts], "minutes": self.minutes}

    def __str__(self) -> str:
        images = (
            f"about {counted(self.labelled, 'labelled image')} to train on, {self.tested} for the test, "
            f"{self.unlabelled} more to learn from without labels"
        )
        widest = max((len(part.name) for part in self.parts), default=0)
        parts = [f"{one.name:<{widest}}  {duration(60 * one.minutes):>12}  {one.what}" for one in self.parts]
        whole = f"about {duration(60 * self.minutes)} on this machine, as busy as it is now"
        return "\n".join(
            [images, *parts, f"{whole}; reading, scores and export come on top", *[self.remark] * bool(self.remark)]
        )


def expect(recipe: Recipe) -> Outlook:
    """Return what a run will do, by its data and a few training steps that are timed here; what is there already is
    counted too.

    Raises UserError where the data cannot be read or hold no labels.
    """
    require_small(recipe)
    with _root_of(recipe.data) as root:
        facts: Facts = look(open_data(recipe.data, root), recipe.data, recipe.engine)
    return Outlook(
        facts.labelled,
        facts.tested,
        max(facts.shown - facts.labelled - facts.validated, 0),
        tuple(Pace.of(facts, recipe).parts(recipe)),
        _UNTIMED if recipe.transfer.synthetic else "",
    )


@contextmanager
def _root_of(data: DataConfig) -> Iterator[Path]:
    """Yield the folder of a data set; built-in images are drawn into one that is removed again."""
    if data.root != PHANTOMS:
        yield Path(data.root).expanduser()
        return
    with TemporaryDirectory() as folder:
        draw_phantoms(data, Path(folder))
        yield Path(folder)
