"""The server's run of a federation on several machines: it has the shared images, and none of any site."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from flwr.app import Context, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID

from tskd.artifacts import RUN_FILE, Artifact
from tskd.console import duration, say, warn
from tskd.errors import RunFailed, UserError
from tskd.experiment.methods import METHODS
from tskd.federated import reported
from tskd.federated.link import Door, Link, serving
from tskd.federated.pipeline import run_file
from tskd.federated.privacy import SYSTEM, RandomBytes
from tskd.federated.result import parcel, sent_of, sent_of_teacher
from tskd.federated.run import FederatedRun, bytes_of
from tskd.federated.server_app import Handing, build_server_app, common
from tskd.federated.site import STUDENT, TEACHER, Numbers, Site, staying, terms
from tskd.models.registry import load_model
from tskd.recipe.schema import AVERAGING
from tskd.report import update_run_report
from tskd.report.run.folder import open_run
from tskd.report.sites import labelled_images
from tskd.run_file import alone_in, write_run
from tskd.stages.teacher import network

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class ServerRun(FederatedRun):
    """What the server makes: the same artifacts as in a simulation, but for those that need a site's images."""

    noise_from: ClassVar[str] = "system"
    door: Door = None  # type: ignore[assignment]
    link: Link | None = None
    """The way to the sites, while it is open."""
    exchanged: bool = False
    """Something was asked of the sites."""

    @cached_property
    def sites(self) -> dict[str, Site]:
        """None is here."""
        return {}

    @property
    def teacher(self) -> Artifact:
        """The averaged teacher; with ``fedbn`` each site puts its own norms into it."""
        return self.averaged

    def _sites_inputs(self) -> dict[str, str]:
        """Return what is known here of what the sites begin with: their names, and the base weights."""
        return {**dict.fromkeys((f"site {name}" for name in self.federated.sites), "elsewhere"),
                "weights": self.teachers.source.digest, "network": network(self.teachers.source)}  # fmt: skip

    def _noise(self, round_: int) -> RandomBytes:
        """Return the system's generator: nobody can draw the noise again and take it off."""
        return SYSTEM

    def _exchange(self, work: Callable[[Any], None]) -> None:
        assert self.link is not None, "the sites are reached while the door is open"
        self.exchanged = True
        build_server_app(work)(self.link, Context(self.link.run.run_id, SUPERLINK_NODE_ID, {}, RecordDict(), {}))


@dataclass(frozen=True)
class Served:
    """What became of a federation."""

    rounds: list[dict[str, Any]]
    bytes: Mapping[str, Mapping[str, int]]
    """Site -> ``down`` and ``up``, in the rounds; the result that is handed over in the end is not in it."""
    result_bytes: int
    kept: list[str]
    """The sites that have the result."""
    seconds: float


def serve(run: ServerRun) -> Served:
    """Open the door to the sites, do the rounds, let the student learn, hand over what was learned, and close."""
    with alone_in(run.out, run.recipe.model_dump(mode="json")):
        return _serve(run)


def _serve(run: ServerRun) -> Served:
    began = time.monotonic()
    _ = run.prepared, run.teachers.source  # what is wrong with them is told before any site connects
    with serving(run.door, run.federated.sites) as run.link:
        say(
            f"federated: {run.federated.strategy} over the sites {', '.join(sorted(run.federated.sites))}, "
            f"{len(run.prepared.records)} shared images, at {run.prepared.image_size} px"
        )
        tensors, chosen, federation = learned(run)
        said = common(federation, terms(run.recipe, run.teachers.source))
        say("federated: the result goes to the sites")
        handing = Handing(run.federated, said, tensors, chosen, wait=not run.exchanged)
        run._exchange(handing)  # noqa: SLF001 the way to the sites is the run's
    if not handing.kept:
        raise RunFailed("No site has the result. It is kept here: start the server again when the sites are there.")
    seconds = time.monotonic() - began
    result_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    say(f"federated: {', '.join(handing.kept)} got the result, after {duration(seconds)}")
    write_scores(run, handing.kept)
    return Served(run.rounds, bytes_of(run.rounds), result_bytes, [*handing.kept], seconds)


def write_scores(run: ServerRun, told: Mapping[str, Numbers]) -> None:
    """Write ``run.json`` and the report by what sites have told of their scores; where none has, say so."""
    scores = {model: _told_of(told, model) for model in (TEACHER, STUDENT)}
    if not (scores := {model: sites for model, sites in scores.items() if sites}):
        (run.out / RUN_FILE).unlink(missing_ok=True)  # of an earlier federation
        say("federated: no site tells its scores; each has them in its own scores.json")
        return
    models = {TEACHER: run.averaged} if run.federated.strategy in AVERAGING else {}
    if STUDENT in scores and run.federated.strategy != "fedbn":  # of which each site has made its own
        models[STUDENT] = METHODS[run.recipe.method].model(run)
    titles = {model: METHODS[TEACHER if model == TEACHER else run.recipe.method].title for model in scores}
    of_all = next(iter(models.values()))
    evaluations = {
        model: reported.build(run.bench, sites, models.get(model, of_all), title=titles[model])
        for model, sites in scores.items()
    }
    labelled = labelled_images(run.rounds)
    found = run_file(
        run, models, evaluations, labels=sum(labelled.values()), labelled=labelled, over="machines"
    )  # fmt: skip
    write_run(run.out, found)
    update_run_report(open_run(run.out))


def _told_of(told: Mapping[str, Numbers], model: str) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for site, numbers in told.items():
        try:
            if (one := reported.summary_told(numbers, model)) is not None:
                found[site] = one
        except UserError as error:
            warn(f"{site} has told {error}; its scores are left out")
    return found


def learned(run: FederatedRun) -> tuple[dict[str, Tensor], int, str]:
    """Return what is handed over, the round that the teacher is of, and the name that the sites know the rounds by."""
    strategy = run.federated.strategy
    averages = strategy in AVERAGING
    teacher, chosen, federation = {}, 0, ""
    if averages:
        averaged = run.averaged
        model = load_model(averaged.path)
        teacher = sent_of_teacher(model, staying(run.federated, model))
        chosen, federation = int(averaged.metrics["round"]), averaged.path.name
    else:
        federation = run.answers.path.name
    taught = run.recipe.method != "teacher" and strategy != "fedbn"
    student = sent_of(load_model(METHODS[run.recipe.method].model(run).path)) if taught else {}
    return parcel(teacher, student), chosen, federation
