"""Choosing the settings of a run: from the data, the weights at hand and what a step takes on this machine.

Each choice has its reason in a line. What was chosen is written into the output folder and read from there by the same
command, so that a run goes on with the steps of its first start however fast the machine is then.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tskd.console import launched_as, say
from tskd.errors import UserError
from tskd.experiment.facts import look
from tskd.experiment.methods import check_names
from tskd.experiment.pace import Pace
from tskd.experiment.rules import FEWEST, Choice, of_the_data, of_the_networks, of_the_time
from tskd.machine.disk import write_atomic, write_json
from tskd.recipe.files import Change, read_settings, set_key
from tskd.recipe.schema import Recipe, build_recipe
from tskd.stages.source_data import open_data

CONFIGURED = "recipe.yaml"
ROOT = "data.root"
CHOICES = "choices.json"
"""Beside it: what was asked for, and each choice with its reason."""
MINUTES = 30.0
STATED_TOGETHER = {
    ("teacher.name", "teacher.weights"): (
        "teacher.decoder",
        "teacher.adaptation",
        "teacher.encoder_lr",
        "teacher.lr",
        "teacher.mirror",
    ),
    ("student.backbone", "student.weights"): ("student.decoder", "student.initialisation"),
    ("method", "baselines", "control.enabled"): ("unet_imagenet.compute",),
}
"""Whoever states one of the first chooses the rest too: our settings are for our networks and baselines."""
_FOLLOWED = {"engine.accelerator", "student.decoder"}.union(*STATED_TOGETHER)
"""Settings that others are chosen by."""


class Configured(NamedTuple):
    """Settings for a data set."""

    recipe: Recipe
    keep: Callable[[], None]
    """Write what was chosen, once it is known that the run can begin: a refused command leaves no choices behind."""


def configure(changes: Sequence[Change], out: Path, *, minutes: float | None = None) -> Configured:
    """Return the settings for a data set: as they were chosen before in ``out``, or chosen now.

    ``changes``: what the user has set, the data's folder (``data.root``) among it; it stands above every choice.
    ``minutes``: about how long the run may take; None: as before, or half an hour. Raises UserError where the data set
    cannot be read or has no labels, or where what was chosen before was chosen for something else.
    """
    if minutes is not None and not 1 <= minutes < math.inf:
        raise UserError(f"target minutes: {minutes:g} is no time to choose settings for; from 1 on.")
    place = out / CONFIGURED
    given = _plain({change.key: change.value for change in changes})
    root = str(Path(given[ROOT]).expanduser().resolve())
    if place.is_file():
        _require_same(out, {"minutes": minutes, "root": root, "given": given})
        say(f"configure: the choices of before hold, from {place}; where the data changed, delete it to choose anew")
        return Configured(_with(read_settings(place), changes, str(place)), lambda: None)
    minutes = minutes or MINUTES
    _require_one_process(_with({}, changes, "the settings"), place, root)
    values, chosen = choose(changes, minutes=minutes)

    def keep() -> None:
        out.mkdir(parents=True, exist_ok=True)
        reasons = [choice._asdict() for choice in chosen]
        write_json(out / CHOICES, {"minutes": minutes, "root": root, "given": given, "chosen": reasons})
        write_atomic(place, yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True).encode())
        say(f"configure: written to {place}; the same command goes on with these settings")

    recipe = _with(values, changes, str(place))
    if recipe.engine.devices * recipe.engine.num_nodes > 1:  # the processes that it starts read what it has chosen
        keep()
        return Configured(recipe, lambda: None)
    return Configured(recipe, keep)


def _require_one_process(recipe: Recipe, place: Path, root: str) -> None:
    """Raise UserError where a launcher started several processes: each would choose by its own clock."""
    if recipe.engine.devices * recipe.engine.num_nodes > 1 and launched_as() is not None:
        raise UserError(
            f"{place} is not there, and processes that are started together cannot choose settings. Choose them first "
            f"in one process, with engine.devices=1, engine.num_nodes=1 and whatever else is set, then start all: "
            f"tskd run --data {root} --out {place.parent} --minutes 0"
        )


def _plain(value: Any) -> Any:
    """Return settings as JSON has them: numbers of numpy are numbers."""
    return json.loads(json.dumps(value, default=lambda one: one.item() if hasattr(one, "item") else str(one)))


def _require_same(out: Path, asked: Mapping[str, Any]) -> None:
    """Raise UserError where the choices in a folder were made for other data, another time or other settings."""
    if (before := _kept(out / CHOICES)) is None:
        return
    old, new = ({key: one for key, one in what["given"].items() if key != ROOT} for what in (before, asked))
    other = []
    if asked["minutes"] not in (None, before["minutes"]):
        other.append(f"for {before['minutes']:g} min, not {asked['minutes']:g}")
    if asked["root"] != before["root"]:
        other.append(f"for the data in {before['root']}, not in {asked['root']}")
    other += [f"with {key}={_written(old[key])}, which is not given now" for key in sorted(old.keys() - new.keys())]
    for key in filter(_decides, sorted(new)):
        if key not in old:
            other.append(f"without {key}={_written(new[key])}")
        elif old[key] != new[key]:
            other.append(f"with {key}={_written(old[key])}, not {_written(new[key])}")
    if other:
        place = out / CONFIGURED
        raise UserError(
            f"{place} was chosen {'; '.join(other)}. Give another --out, delete that file to choose anew, or go on "
            f"with it as a recipe: tskd run {place} --data {asked['given'][ROOT]} --out {out}"
        )


def _kept(path: Path) -> dict[str, Any] | None:
    """Return what was asked for; None where the folder is of a version that did not keep it."""
    if not path.is_file():
        return None
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        return {"minutes": float(before["minutes"]), "root": str(before["root"]), "given": dict(before["given"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged. Delete it and {CONFIGURED} beside it, and settings are chosen anew."
        ) from error


def _decides(key: str) -> bool:
    """Say whether choices follow from a setting."""
    return key.startswith("data.") or key.endswith("augment") or key in _FOLLOWED


def choose(changes: Sequence[Change], *, minutes: float) -> tuple[dict[str, Any], list[Choice]]:
    """Return settings as a tree, the user's included, and the choices among them; each is said with its reason."""
    values: dict[str, Any] = {}
    chosen: list[Choice] = []
    given = _with(values, changes, "the settings")
    check_names(given)
    facts = look(open_data(given.data, Path(given.data.root).expanduser()), given.data, given.engine)

    def take(choices: Iterable[Choice]) -> Recipe:
        for choice in left_to_choose(choices, changes):
            say(f"configure: {choice.key}={_written(choice.value)}: {choice.reason}")
            set_key(values, choice.key, choice.value)
            _with(values, changes, "the choices")
            chosen.append(choice)
        return build_recipe(values, "the choices")

    take(of_the_data(facts, values))
    pace = Pace.of(facts, take(of_the_networks(facts, values)))
    found = take(of_the_time(pace, values, minutes))
    if (whole := pace.minutes(found)) > 1.1 * minutes:
        few = any(
            one.key == f"{section}.steps" and one.value == least for section, least in FEWEST.items() for one in chosen
        )
        why = "fewer steps are not worth it" if few else "by the settings that were given"
        say(f"configure: about {whole:.0f} min in all, more than {minutes:g}: {why}")
    return values, chosen


def _written(value: Any) -> str:
    """Return a value as ``--set`` takes it."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).splitlines()[0]


def left_to_choose(choices: Iterable[Choice], changes: Sequence[Change]) -> Iterator[Choice]:
    """Return the choices that the user has not made: whoever names a network, say, chooses all of it."""
    stated = {change.key for change in changes}
    for names, rest in STATED_TOGETHER.items():
        if stated.intersection(names):
            stated.update(names, rest)
    return (choice for choice in choices if stated.isdisjoint(_and_its_sections(choice.key)))


def _and_its_sections(key: str) -> Iterator[str]:
    """Yield ``teacher.augment.foreground``, ``teacher.augment``, ``teacher``: one may be stated by a name."""
    while key:
        yield key
        key = key.rpartition(".")[0]


def _with(values: dict[str, Any], changes: Sequence[Change], source: str) -> Recipe:
    """Set the changes in a tree of settings and return its recipe."""
    for change in changes:
        set_key(values, *change)
    return build_recipe(values, source)
