"""``run.json``: what a finished run found, read back only as far as the run's artifacts say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tskd.artifacts import ARTIFACTS, RUN_FILE, Artifact, Costs, canonical_json, manifest_damage, seal_holds, sealed
from tskd.console import warn
from tskd.errors import UserError
from tskd.machine.disk import write_json
from tskd.recipe.files import current_settings

REMEDY = "Run `tskd run` with the same settings again: it makes what is missing."
_SHOWN = 5


@dataclass(frozen=True)
class RunFile:
    """What a finished run found: the keys of ``run.json``. Those with a default came with later versions."""

    dataset: str
    labels: int
    """Images whose labels were used, the validation part included."""
    seed: int
    method: str
    teacher: str | None
    """As messages call it; None: the run did without one."""
    seconds: float
    metrics: Mapping[str, Mapping[str, Any]]
    """Model's name -> its scores and compute."""
    artifacts: Mapping[str, str]
    """Model's name -> the folder of its weights."""
    evaluations: Mapping[str, str]
    """Model's name -> the folder of its scores."""
    export: Mapping[str, Any]
    """What the proof of the bundle found."""
    stages: Costs
    recipe: Mapping[str, Any]
    tested_on: str = ""
    peak_memory_mb: float = 0.0
    peak_gpu_memory_mb: float = 0.0
    ablation: Mapping[str, float | None] = field(default_factory=dict)
    """Dice of the shipped student with parts of it switched off."""
    doubt: Mapping[str, Any] = field(default_factory=dict)
    """What the shipped student knows of its doubts and what that was worth, and ``artifact``, the folder of it."""
    budget_rule: str = ""
    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Model's name -> parameters, size, latency."""
    federated: Mapping[str, Any] = field(default_factory=dict)
    """Of a federated recipe: ``strategy``; ``sites``, model's name -> site -> its scores; ``labelled``, site -> how
    many labelled images it trains on, where that is known here; ``rounds``, ``bytes``,
    ``privacy``, and ``over``: ``simulation`` or ``machines``."""

    def as_dict(self) -> dict[str, Any]:
        """Return the values as ``run.json`` holds them."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def write_run(out: Path, run: RunFile) -> None:
    """Write what a run found into its output folder."""
    write_json(out / RUN_FILE, sealed(run.as_dict()))


def read_run(out: Path) -> RunFile:
    """Return what the run in a folder found.

    Raises UserError where it cannot be read, was changed, or says other scores than the artifacts of the evaluations,
    which were made of the predictions; and where one of those artifacts is gone.
    """
    try:
        summary = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged_run(out, f"{RUN_FILE} cannot be read") from error
    wanted = {one.name for one in fields(RunFile) if one.default is MISSING and one.default_factory is MISSING}
    if missing := sorted(wanted - summary.keys() if isinstance(summary, dict) else wanted):
        raise damaged_run(out, f"{RUN_FILE} lacks {', '.join(missing)}")
    if not seal_holds(summary):
        raise damaged_run(out, f"{RUN_FILE} was changed after it was written: its seal does not fit")
    if said := next(_doubts(out, summary), None):
        raise damaged_run(out, said)
    return RunFile(**{one.name: summary[one.name] for one in fields(RunFile) if one.name in summary})


def folder_of_run(model: Path) -> Path:
    """Return a run's output folder, given that or the bundle in it."""
    return model if (model / RUN_FILE).is_file() else model.parent


def is_federated(model: Path) -> bool:
    """Return whether a run's output folder, or the bundle in it, is of a federation; UserError as :func:`read_run`."""
    out = folder_of_run(model)
    return (out / RUN_FILE).is_file() and bool(read_run(out).federated)


@contextmanager
def alone_in(out: Path, recipe: Mapping[str, Any]) -> Iterator[None]:
    """Hold the output folder of a run, and say what of an earlier run with another recipe will be replaced.

    Raises UserError where another run is at work there: the last to end would take the other's place without a word.
    """
    locks = out / ARTIFACTS / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(locks / "run").acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{out}: another `tskd run` is at work in this folder. Wait until it is done, or give another --out."
        ) from error
    with held:
        if changed := changed_settings(out, recipe):
            warn(
                f"{out} holds a run with other settings ({', '.join(changed)}): its {RUN_FILE}, bundle and report will "
                "be replaced; its artifacts stay, so its own command writes them again soon. Another --out keeps both"
            )
        yield


def changed_settings(out: Path, recipe: Mapping[str, Any]) -> list[str]:
    """Return the settings in which a recipe differs from that of the run that lies in a folder, first five.

    Where and how the work is done does not count; no run there, or one that cannot be read, differs in nothing.
    """
    try:
        before = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))["recipe"]
        known = (current_settings(one, notice=False) for one in (before, recipe))
        old, new = (dict(_leaves({**one, "engine": {}})) for one in known)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    changed = [key for key in new if old.get(key) != new[key]]
    return [*changed[:_SHOWN], *(["and more"] if len(changed) > _SHOWN else [])]


def _leaves(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield before + key, value


def damaged_run(out: Path, what: str) -> UserError:
    """Return the error for a run's folder whose files are not what the run left."""
    return UserError(f"{out}: {what}. {REMEDY}")


def _doubts(out: Path, summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield why the scores or the names of artifacts cannot be believed."""
    for key in ("metrics", "artifacts", "evaluations"):
        if not isinstance(summary[key], dict):
            yield f"{key} in {RUN_FILE} is not a table of names"
    for name in sorted({*summary["artifacts"].values(), *summary["evaluations"].values()}, key=str):
        if not isinstance(name, str) or Path(name).name != name:
            yield f"{RUN_FILE} names an artifact that cannot be one"
    if set(summary["metrics"]) != set(summary["evaluations"]):
        yield f"{RUN_FILE} has scores of other models than evaluations"
    for model, name in summary["evaluations"].items():
        artifact = Artifact(out / ARTIFACTS / name)
        if not artifact.path.is_dir():
            yield f"artifacts/{name} is gone"
        elif damage := manifest_damage(artifact):
            yield f"artifacts/{name} is damaged ({damage})"
        elif wrong := next(misquoted(summary["metrics"][model], artifact), None):
            yield f"{wrong} of {model} in {RUN_FILE} is not that of artifacts/{name}"


def misquoted(scores: Mapping[str, Any], evaluation: Artifact) -> Iterator[str]:
    """Yield the names of scores that differ from those of the evaluation they are said to be of."""
    measured = evaluation.metrics
    for key in scores:
        if key in measured and canonical_json(scores[key]) != canonical_json(measured[key]):
            yield key
