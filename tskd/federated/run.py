"""A federated recipe in one folder: the sites, what they train together, and how it does at each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tskd.artifacts import Artifact, json_sha256
from tskd.data.prepared import TEST_DIGEST, digest_of_source, digest_of_test
from tskd.engine import Runtime
from tskd.errors import RunFailed
from tskd.experiment.budget import adaptation_flops, teacher_compute
from tskd.experiment.initialisations import Initialisations
from tskd.experiment.run import Run
from tskd.experiment.teachers import Teachers
from tskd.federated import scores
from tskd.federated.privacy import RandomBytes, seeded, told_of
from tskd.federated.public_run import PublicRun
from tskd.federated.shared import new_teacher, put, trained_tensors, without
from tskd.federated.site import SITES, Site, Task, answering, own_recipe, staying, terms
from tskd.machine.disk import write_json
from tskd.models.flops import gflops
from tskd.models.registry import save_model
from tskd.recipe.schema import AVERAGING, NAMING, FederatedConfig
from tskd.report.comparison.files import PRIVACY
from tskd.report.sites import measures
from tskd.stages import distill, pooled
from tskd.stages.compute import compute_of
from tskd.stages.lesson import Lesson, Teacher
from tskd.stages.stored_answers import TEACHER_GFLOPS
from tskd.stages.teacher import FILE, RESOLVED, SAME_RESULT, TOGETHER, network
from tskd.stages.teacher import VERSION as TEACHER_VERSION

if TYPE_CHECKING:
    from tskd.federated.simulate import Backend, Heard

VERSION = 1
POOLED = "pooled"
"""Folder of what the strategy of that name has in one place."""
BY_ITSELF = ("alone", "feddistill")
"""Strategies in which every site adapts a teacher of its own."""


@dataclass
class Pooled(Run):
    """What a site would do that had the data of all."""

    sites: Mapping[str, Site] = None  # type: ignore[assignment]

    @cached_property
    def prepared_artifact(self) -> Artifact:
        return pooled.build(self.bench.store, {n: site.own.prepared_artifact for n, site in self.sites.items()})

    @cached_property
    def tested_artifact(self) -> Artifact:
        """The same with the test images of all sites: what a bundle of their common student is proved by."""
        return pooled.build(self.bench.store, {n: s.own.prepared_artifact for n, s in self.sites.items()}, tested=True)

    def shown(self, size: int) -> Artifact:
        """Return the images of all sites as a teacher of that size sees them."""
        return pooled.build(self.bench.store, {n: site.own.shown(size) for n, site in self.sites.items()})


@dataclass
class FederatedRun(PublicRun):
    """The server's run: the shared images, and models that sites make together. Each property is an artifact."""

    noise_from: ClassVar[str] = "seed"
    backend: Backend = "here"
    heard: Heard | None = None
    """Is told every message of the backend ``here``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.teachers, self.initialisations = FederatedTeachers(self), FederatedInitialisations(self)
        self.models_of: dict[Path, Mapping[str, Artifact]] = {}
        """Of an artifact that stands for one model a site: which."""

    @property
    def federated(self) -> FederatedConfig:
        assert self.recipe.federated is not None
        return self.recipe.federated

    @property
    def used(self) -> tuple[Artifact, ...]:
        """Every artifact that was asked for so far, of the sites too."""
        elsewhere = [one for site in self.sites.values() for one in site.used]
        return (
            *self.bench.used.values(),
            *elsewhere,
            *(self.pooled.used if self.federated.strategy == "pooled" else ()),
        )

    @property
    def source_digest(self) -> str:
        """Digest of the images and masks of all sites, as they lie in their folders."""
        known = {name: digest_of_source(site.own.prepared_artifact) for name, site in self.sites.items()}
        return json_sha256({**known, "transfer": digest_of_source(self.prepared_artifact)})

    @property
    def data_name(self) -> str:
        """Return what all sites' images are called together; how a site calls its own is its affair."""
        return pooled.EVERYWHERE

    def figures(self, evaluation: Artifact) -> Mapping[str, str | float | None]:
        """Return the worst site, its Dice, the mean over sites, and what was sent in all."""
        found = evaluation.metrics
        worst = found["worst"]
        sent = bytes_of(self.rounds).values()
        return {
            "worst_site": worst,
            "dice_worst_site": None if worst is None else found["sites"][worst]["dice"],
            "dice_of_sites": found["dice_of_sites"],
            PRIVACY: measures(self.privacy) or None,
            **{name: self.privacy[name] for name in ("epsilon", "delta")},
            **{f"mb_{way}": round(sum(one[way] for one in sent) / 1e6, 3) for way in ("down", "up")},
        }

    # --- sites ---

    @cached_property
    def sites(self) -> dict[str, Site]:
        """The sites, by name and in its order, each in a folder of its own."""
        return {name: self._site(name) for name in sorted(self.federated.sites)}

    def _site(self, name: str) -> Site:
        folder = self.out / SITES / name
        return Site(name, self.recipe, folder, self.runtime, self.download, self.open_store, self.readings)

    @cached_property
    def pooled(self) -> Pooled:
        """All data in one place."""
        recipe = own_recipe(self.recipe, next(iter(self.sites)))
        place = self.out / POOLED, self.runtime, self.download, self.open_store, self.readings
        return Pooled(recipe, *place, sites=self.sites)

    @property
    def tested_artifact(self) -> Artifact:
        """Which test images the sites score: their digests, no image."""
        return self.once("tested", self._tested)

    def _tested(self) -> Artifact:
        digests = {name: site.own.prepared_artifact for name, site in self.sites.items()}
        return self.bench.build(
            "sites",
            lambda folder: _describe_tested(digests, folder),
            config={}, inputs={f"site {name}": one.digest for name, one in digests.items()}, seed=0, version=VERSION,
        )  # fmt: skip

    # --- teachers ---

    @cached_property
    def teacher(self) -> Artifact:
        """The adapted teacher of the strategy, or what stands for one at each site."""
        strategy = self.federated.strategy
        if strategy == "pooled":
            return self.pooled.teachers.adapted
        if strategy in BY_ITSELF:
            return self.one_each("teacher", {name: site.own.teachers.adapted for name, site in self.sites.items()})
        if strategy == "fedbn":
            shared = self.averaged
            return self.one_each(
                "teacher", {n: site.own_teacher(shared, self._chosen) for n, site in self.sites.items()}
            )
        return self.averaged

    @cached_property
    def averaged(self) -> Artifact:
        """The teacher whose trained tensors the sites have averaged, round by round."""
        settings = own_recipe(self.recipe, min(self.federated.sites)).teacher
        unsaid: dict[str, Any] = dict.fromkeys(("sites", "transfer", "answers", "timeout", "min_sites"), True)
        unsaid |= {"privacy": {"delta"}} | ({} if self.federated.strategy == "fedprox" else {"proximal": True})
        return self.bench.build(
            "federated_teacher",
            self._average,
            config={
                **settings.model_dump(exclude=set(NOT_IN_A_NAME | TOGETHER), context=NAMING),
                "precision": self.bench.precision,
                **self.federated.model_dump(exclude=unsaid, context=NAMING),
            },
            inputs=self._sites_inputs(),
            version=VERSION + TEACHER_VERSION,
        )  # fmt: skip

    def _sites_inputs(self) -> dict[str, str]:
        """Return digests of what the sites and their teachers begin with."""
        data = {f"site {name}": site.own.prepared_artifact.digest for name, site in self.sites.items()}
        return {**data, "weights": self.teachers.source.digest, "network": network(self.teachers.source)}

    def _average(self, folder: Path) -> dict[str, Any]:
        from tskd.federated.server_app import Averaging, common

        source = self.teachers.source
        model = new_teacher(source, self.recipe.seed)
        stays = staying(self.federated, model)
        federation = folder.name.partition(".")[0]
        said = common(federation, terms(self.recipe, source))
        work = Averaging(
            self.federated, said, without(trained_tensors(model), stays), folder, lambda: self.runtime.out_of_time,
            self._noise,
        )  # fmt: skip
        self._exchange(work)
        put(model, work.tensors)
        save_model(folder, model, source.description, file=FILE, more={"title": source.title})
        taken = sum(len(entry["sites"]) for entry in work.log) * self.federated.local_steps
        spent = taken * self.recipe.teacher.batch_size * adaptation_flops(source.description)
        best = {} if work.log[work.round - 1]["score"] is None else {"val_dice": round(work.score, 5)}
        steps = self.federated.rounds * self.federated.local_steps
        named = {"teacher": source.title, **best, "round": work.round, "steps": steps}
        return {**named, TEACHER_GFLOPS: gflops(spent), "rounds": work.log}

    def _noise(self, round_: int) -> RandomBytes:
        """Return what the noise of a round is drawn from: the seed, for who simulates has the images anyway."""
        return seeded(self.recipe.seed, round_)

    @property
    def _chosen(self) -> Task:
        """The round whose tensors are the averaged teacher."""
        return Task(self.averaged.path.name, self.averaged.metrics["round"])

    def _exchange(self, work: Callable[[Any], None]) -> None:
        """Let the server do its work over the sites."""
        from tskd.federated.client_app import build_client_app
        from tskd.federated.server_app import build_server_app
        from tskd.federated.simulate import numbered, run_apps

        names = list(self.sites)
        open_site: Callable[[str], Site] = self.sites.__getitem__
        if self.backend == "ray":
            open_site = Elsewhere(self.recipe.model_dump(mode="json"), self.out.resolve(), self.download)
        client = build_client_app(numbered(names, open_site))
        run_apps(build_server_app(work), client, sites=len(names), backend=self.backend, heard=self.heard)

    # --- answers ---

    @cached_property
    def answers(self) -> Artifact:
        """The mean of what the sites' own teachers answer on the shared images, weighted by their validation scores."""
        lesson = self._lesson("")
        config = answering(self.recipe)
        settings = own_recipe(self.recipe, min(self.federated.sites)).teacher
        return self.bench.build(
            "federated_answers",
            self._ask,
            config={
                "teacher": settings.model_dump(exclude=set(NOT_IN_A_NAME), context=NAMING), "views": config.views,
                "augment": config.augment.model_dump(exclude={"appearance"}, context=NAMING),
                "precision": self.bench.precision, "answers": self.federated.answers,
            },
            inputs={**self._sites_inputs(), **{n: one for n, one in lesson.inputs.items() if n != "teacher"}},
            version=VERSION,
        )  # fmt: skip

    def _ask(self, folder: Path) -> dict[str, Any]:
        from tskd.federated import answers
        from tskd.federated.server_app import Asking, common

        layout = answers.plan(self.recipe, self._lesson(""), seed=self.bench.seed)
        said = common(folder.name.partition(".")[0], terms(self.recipe, self.teachers.source))
        work = Asking(
            self.federated, said, lambda arrays: answers.require_answers(arrays, layout, self.federated.answers)
        )
        self._exchange(work)
        weights = weights_of({one.site: one.numbers["score"] for one in work.replies})
        replies = [(one.arrays, weights[one.site]) for one in work.replies]
        metrics = answers.write_average(replies, layout, self.recipe, folder)
        sites = {
            one.site: {"down": work.sent, "up": one.bytes, "weight": round(weights[one.site], 6), **told(one.numbers)}
            for one in work.replies
        }
        settings = own_recipe(self.recipe, work.replies[0].site).model_copy(update={"distill": answering(self.recipe)})
        described = [source.description for source in self.teachers.sources]
        spent = teacher_compute(settings, described, images=layout.images)
        metrics |= {TEACHER_GFLOPS: gflops(len(replies) * spent)}
        return {**metrics, "rounds": [{"round": 1, "seconds": None, "sites": sites}]}

    def _lesson(self, teacher: str) -> Lesson:
        def absent() -> Any:
            raise RunFailed("the sites' answers are stored: no teacher is there to be asked")

        return Lesson(
            self.student_description,
            Teacher(teacher, absent),
            self.transfer,
            self.prepared_artifact,
            self.teachers.data,
        )

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """What went to and came from the sites, round by round; nothing where nothing was sent."""
        strategy = self.federated.strategy
        if strategy in AVERAGING:
            return list(self.averaged.metrics["rounds"])
        return list(self.answers.metrics["rounds"]) if strategy == "feddistill" else []

    @cached_property
    def privacy(self) -> dict[str, Any]:
        """What is said of privacy: the settings, epsilon of all rounds at delta, and where the noise comes from."""
        return {**told_of(self.federated.privacy, self.federated.rounds), "noise_from": self.noise_from}

    # --- students and scores ---

    def one_each(self, kind: str, models: Mapping[str, Artifact]) -> Artifact:
        """Return what stands for one model a site."""
        artifact = self.bench.build(
            "site_models",
            lambda folder: self._describe(models, folder),
            config={"kind": kind},
            inputs={f"site {name}": model.digest for name, model in models.items()},
            version=VERSION,
        )
        self.models_of[artifact.path] = models
        return artifact

    def _describe(self, models: Mapping[str, Artifact], folder: Path) -> dict[str, Any]:
        write_json(folder / "sites.json", {name: model.digest for name, model in models.items()})
        compute = compute_of([*models.values()], self.used)._asdict()
        return {"teacher": self.teachers.source.title, **compute, "rounds": self.rounds}

    def model_at(self, model: Artifact, site: str) -> Artifact:
        """Return the model that a site uses."""
        models = self.models_of.get(model.path)
        return model if models is None else models[site]

    def evaluation(self, model: Artifact, title: str) -> Artifact:
        """Return the scores of a model on the test images of all sites, each by the model that it uses."""
        found = {name: site.own.evaluation(self.model_at(model, name), title) for name, site in self.sites.items()}
        return scores.build(self.bench, found, self.tested_artifact, model, title=title)

    def ablation(self, model: Artifact) -> Artifact | None:
        """Return None: no part of a federated model is switched off."""
        return None


@dataclass
class FederatedTeachers(Teachers):
    """The teacher that the sites make."""

    run: FederatedRun

    @cached_property
    def adapted(self) -> Artifact:
        return self.run.teacher


@dataclass
class FederatedInitialisations(Initialisations):
    """The student that has learned on the shared images: one for all where they have one teacher, or one each."""

    run: FederatedRun

    @cached_property
    def distilled(self) -> Artifact:
        run = self.run
        if run.federated.strategy == "feddistill":
            config, answers = answering(run.recipe), run.answers
            return distill.build(run.bench, config, run._lesson(answers.digest), lambda: answers)  # noqa: SLF001
        models = run.models_of.get(run.teacher.path)
        if models is None:
            return self.distilled_by(run.teacher)
        learned = {n: run.sites[n].public.initialisations.distilled_by(one) for n, one in models.items()}
        return run.one_each("student", learned)


@dataclass(frozen=True)
class Elsewhere:
    """Opens a site in another process of this machine."""

    recipe: Mapping[str, Any]
    out: Path
    download: bool

    def __call__(self, name: str) -> Site:
        from tskd.engine import open_runtime
        from tskd.recipe.schema import build_recipe

        recipe = build_recipe(self.recipe, f"site {name}")
        runtime: Runtime = open_runtime(recipe.engine)
        return Site(name, recipe, self.out / SITES / name, runtime, self.download)


NOT_IN_A_NAME = SAME_RESULT | RESOLVED | {"accumulate"}
"""Settings of the teacher that its tensors do not depend on, or that are in them by the weights' digest."""


def weights_of(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each site's answers: its validation score; the same for all where one site has none."""
    usable = all(score == score and score > 0 for score in scores.values())
    total = sum(scores.values()) if usable else float(len(scores))
    return {name: (score if usable else 1.0) / total for name, score in scores.items()}


def told(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers that are some: a site without a validation part has no score."""
    return {name: value for name, value in numbers.items() if value == value}


def _describe_tested(sites: Mapping[str, Artifact], folder: Path) -> dict[str, Any]:
    digests = {name: digest_of_test(one) for name, one in sites.items()}
    write_json(folder / "sites.json", digests)
    return {TEST_DIGEST: json_sha256(digests)}


def bytes_of(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return site -> the bytes that went ``down`` to it and ``up`` from it in all rounds."""
    total: dict[str, dict[str, int]] = {}
    for entry in rounds:
        for site, one in entry["sites"].items():
            known = total.setdefault(site, {"down": 0, "up": 0})
            known["down"], known["up"] = known["down"] + one["down"], known["up"] + one["up"]
    return total
