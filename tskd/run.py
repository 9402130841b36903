"""One run: every artifact of a recipe as a property that computes what it needs first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tskd.artifacts import Artifact, Builder, Costs, Processes, Store, canonical_json
from tskd.config import PHANTOMS, DataConfig, Recipe, TrainConfig
from tskd.console import say
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import TransferSet, read_samples
from tskd.engine import Batches, ImageBatches, Runtime
from tskd.engine.batches import allowed_flips
from tskd.models.flops import training_flops
from tskd.models.registry import build_model, load_model
from tskd.seeding import derive
from tskd.stages import cache, diffusion, distill, evaluate, finetune, prepare, samples, teacher, transfer
from tskd.stages.transfer_quality import Synthetic, embedding_features, imagenet_features

ARTIFACTS = "artifacts"
"""Folder of the store in an output folder."""


@dataclass
class Run:
    """One recipe in one output folder. Each property is an artifact; asking for it computes what it needs first."""

    recipe: Recipe
    out: Path
    runtime: Runtime
    download: bool = False
    """Allow fetching SAM's weights."""
    open_store: Callable[[Path, Processes], Builder] = Store
    """What answers requests for artifacts: the store that makes them, or one that only plans."""

    def __post_init__(self) -> None:
        fabric = self.runtime.fabric
        self.store = self.open_store(self.out / ARTIFACTS, Processes(fabric.global_rank, fabric.barrier))

    # --- data ---

    @cached_property
    def prepared_artifact(self) -> Artifact:
        return self._prepare(self.recipe.data)

    @cached_property
    def prepared(self) -> Prepared:
        return Prepared(self.prepared_artifact.path)

    @cached_property
    def tested_artifact(self) -> Artifact:
        """The data whose test images are scored: the recipe's, or that of ``evaluate.data``."""
        data, other = self.recipe.data, self.recipe.evaluate.data
        if other is None:
            return self.prepared_artifact
        artifact = self._prepare(prepare.tested_data(data, other))
        tested = Prepared(artifact.path)
        evaluate.refuse_other_classes(self.prepared, tested)
        if prepare.same_images(data, other):
            seen = self.prepared.cases("train", "val", "unlabelled")
            evaluate.refuse_seen_cases(seen, tested, what="training")
        return artifact

    @property
    def tested(self) -> Prepared:
        return Prepared(self.tested_artifact.path)

    def _prepare(self, data: DataConfig) -> Artifact:
        root = self._phantoms(data).path if data.root == PHANTOMS else Path(data.root).expanduser()
        dataset = prepare.open_data(data, root)
        return self.store.build(
            "prepare",
            lambda folder: prepare.prepare(data, dataset, folder),
            config=data.model_dump(exclude={"root", "phantom", "layout"}),
            inputs={"data": prepare.dataset_digest(dataset)},
            seed=data.split_seed,
            version=prepare.VERSION,
        )

    def _phantoms(self, data: DataConfig) -> Artifact:
        """Return the built-in images, drawn once."""
        return self.store.build(
            "phantoms",
            lambda folder: prepare.draw_phantoms(data, folder),
            config=data.phantom.model_dump(),
            inputs={},
            seed=data.split_seed,
            version=1,
        )

    # --- teacher and transfer set ---

    @cached_property
    def teacher_source(self) -> teacher.TeacherSource:
        prepared = self.prepared
        source = teacher.choose_teacher(
            self.recipe.teacher, prepared.classes, prepared.image_size, download=self.download
        )
        say(f"teacher: {source.title}")
        return source

    @cached_property
    def teacher(self) -> Artifact:
        config, source = self.recipe.teacher, self.teacher_source
        return self._train(
            "teacher",
            lambda folder: teacher.train_teacher(
                config, source, self.prepared, folder, seed=self.recipe.seed, runtime=self.runtime
            ),
            config=config,
            inputs={"data": self.prepared_artifact.digest, "weights": source.digest},
            version=teacher.VERSION,
        )

    @cached_property
    def diffusion(self) -> Artifact:
        config = self.recipe.diffusion
        return self._train(
            "diffusion",
            lambda folder: diffusion.train_diffusion(
                config, self.prepared, folder, seed=self._diffusion_seed, runtime=self.runtime
            ),
            config=config,
            without=diffusion.OUTSIDE_CONFIG,
            seed=self._diffusion_seed,
            inputs={"data": self.prepared_artifact.digest},
            version=diffusion.VERSION,
        )

    @property
    def _diffusion_seed(self) -> int:
        seed = self.recipe.diffusion.seed
        return self.recipe.seed if seed is None else seed

    @cached_property
    def samples(self) -> tuple[Artifact, ...]:
        """The images sampled from the diffusion model, before the gate: in blocks, which larger sets share."""
        count = self.recipe.transfer.synthetic
        return tuple(self._sample_block(numbers) for numbers in samples.blocks(count))

    def _sample_block(self, numbers: range) -> Artifact:
        config = self.recipe.diffusion

        def make(folder: Path) -> Mapping[str, Any]:
            seen = diffusion.read_seen_cases(self.diffusion.path)
            evaluate.refuse_seen_cases(seen, self.prepared, what="the diffusion model")
            sampler = samples.open_sampler(
                self.diffusion.path,
                config,
                image_size=self.prepared.image_size,
                seed=self._diffusion_seed,
                runtime=self.runtime,
                bf16=self.recipe.engine.precision == "bf16-mixed",
            )
            return samples.draw_samples(numbers, sampler, folder, runtime=self.runtime)

        settings = config.model_dump(include=set(diffusion.SAMPLING_SETTINGS))
        return self.store.build(
            "samples",
            make,
            config={**settings, "first": numbers.start, "count": len(numbers), "image_size": self.prepared.image_size},
            inputs={"diffusion": self.diffusion.digest},
            seed=self._diffusion_seed,
            version=samples.VERSION,
            together=True,
        )

    @cached_property
    def transfer(self) -> Artifact:
        config = self.recipe.transfer
        inputs = {"data": self.prepared_artifact.digest}
        if config.synthetic:  # the teacher's features are a part of the judgement on them
            inputs |= {f"samples {number}": block.digest for number, block in enumerate(self.samples)}
            inputs |= {"teacher": self.teacher.digest}
        return self._build(
            "transfer",
            lambda folder: transfer.build_transfer(
                config,
                self.prepared,
                folder,
                seed=self.recipe.seed,
                runtime=self.runtime,
                synthetic=self._synthetic() if config.synthetic else None,
            ),
            config=config,
            inputs=inputs,
            version=transfer.VERSION,
            together=True,
        )

    def _synthetic(self) -> Synthetic:
        device = self.runtime.fabric.device
        features = {
            "teacher": embedding_features(load_model(self.teacher.path), device),
            "imagenet": imagenet_features(self.prepared.image_size, device),
        }
        return Synthetic(read_samples([block.path for block in self.samples]), features)

    @property
    def transfer_set(self) -> TransferSet:
        return TransferSet(self.transfer.path, self.prepared)

    # --- student ---

    @cached_property
    def student_description(self) -> dict[str, Any]:
        student = self.recipe.student
        arguments = {"backbone": student.backbone, "decoder": student.decoder}
        sizes = {"classes": list(self.prepared.classes), "image_size": self.prepared.image_size}
        return {"kind": "timm", "arguments": arguments, "weights": student.weights, **sizes}

    @cached_property
    def distilled(self) -> Artifact:
        config = self.recipe.distill
        return self._train(
            "distill",
            self._distill,
            config=config,
            inputs=self._distillation_inputs,
            version=distill.VERSION,
        )

    @property
    def _distillation_inputs(self) -> dict[str, str]:
        return {
            "data": self.prepared_artifact.digest,
            "teacher": self.teacher.digest,
            "transfer": self.transfer.digest,
            "student": canonical_json(self.student_description),
        }

    @cached_property
    def cache(self) -> Artifact | None:
        """The teacher's stored answers; None where computing them online is cheaper."""
        config, transfer_set = self.recipe.distill, self.transfer_set
        if not cache.cache_pays(config, len(transfer_set.images)):
            return None
        return self.store.build(
            "cache",
            self._build_cache,
            config={"views": config.views, "augment": config.augment.model_dump()},
            inputs=self._distillation_inputs,
            seed=self.recipe.seed,
            version=cache.VERSION,
            together=True,
        )

    def _build_cache(self, folder: Path) -> Mapping[str, Any]:
        config, seed = self.recipe.distill, self.recipe.seed
        network, transfer_set = load_model(self.teacher.path), self.transfer_set
        student = build_model(self.student_description)
        layout = cache.plan_cache(network, student, transfer_set, views=config.views, seed=seed)
        return cache.build_cache(network, transfer_set, layout, config.augment, folder, runtime=self.runtime)

    def _distill(self, folder: Path) -> Mapping[str, Any]:
        config = self.recipe.distill
        common: dict[str, Any] = {
            "batch_size": config.batch_size,
            "augment": config.augment,
            "seed": derive(self.recipe.seed, "transfer batches"),
            "flip": allowed_flips(config.augment, self.prepared.classes),
        }
        batches: Batches
        if self.cache is None:
            ask = distill.online(load_model(self.teacher.path), self.runtime)
            transfer_set = self.transfer_set
            batches = ImageBatches(transfer_set.images, None, transfer_set.names, **common)
        else:
            ask = distill.stored
            batches = cache.CachedBatches(self.cache.path, self.transfer_set, **common)
        return distill.distill(
            config, self.student_description, batches, ask, folder,
            seed=self.recipe.seed, runtime=self.runtime,
        )  # fmt: skip

    def finetuned(self, start: Artifact | None) -> Artifact:
        """Return the student fine-tuned from a start; without one it trains longer, for the same total compute."""
        config = self.recipe.finetune
        if start is None:
            config = config.model_copy(update={"steps": self._scratch_steps})
        inputs = {"data": self.prepared_artifact.digest, "student": canonical_json(self.student_description)}
        if start is not None:
            inputs["start"] = start.digest
        return self._train(
            "finetune",
            lambda folder: finetune.finetune(
                config, self.student_description, start.path if start else None, self.prepared, folder,
                seed=self.recipe.seed, runtime=self.runtime,
            ),
            config=config,
            inputs=inputs,
            version=finetune.VERSION,
        )  # fmt: skip

    @property
    def _scratch_steps(self) -> int:
        tune, other = self.recipe.finetune, self.recipe.distill
        return tune.steps + -(-other.steps * other.batch_size // tune.batch_size)

    # --- control ---

    @cached_property
    def student_flops(self) -> int:
        """Training compute of the student: distillation and fine-tuning together, the teacher's share left out."""
        tune, other = self.recipe.finetune, self.recipe.distill
        images = tune.steps * tune.batch_size + other.steps * other.batch_size
        return images * training_flops(build_model(self.student_description), self.prepared.image_size)

    @cached_property
    def control(self) -> Artifact:
        control = self.recipe.control
        sizes = {"classes": list(self.prepared.classes), "image_size": self.prepared.image_size}
        description = {"kind": "dynunet", "arguments": {"channels": list(control.channels)}, "weights": None, **sizes}
        steps = min(control.steps, finetune.steps_within(self.student_flops, description, control.batch_size))
        config = control.model_copy(update={"steps": steps})
        return self._train(
            "control",
            lambda folder: finetune.train_control(
                config, description, self.prepared, folder, seed=self.recipe.seed, runtime=self.runtime
            ),
            config=config,
            inputs={"data": self.prepared_artifact.digest},
            version=finetune.VERSION,
        )

    # --- scores ---

    def evaluation(self, model: Artifact, title: str) -> Artifact:
        """Return the scores of a trained model on the test images."""
        config, tested = self.recipe.evaluate, self.tested_artifact
        return self.store.build(
            "evaluate",
            lambda folder: evaluate.evaluate(
                config,
                load_model(model.path),
                Prepared(tested.path),
                folder,
                title=title,
                device=self.runtime.fabric.device,
            ),
            config=config.model_dump(exclude={"data"}),
            inputs={"data": tested.digest, "model": model.digest, "title": title},
            seed=self.recipe.seed,
            version=evaluate.VERSION,
        )

    # --- artifacts ---

    @property
    def costs(self) -> Costs:
        """Seconds and peak memory of every artifact asked for so far, as measured when it was made."""
        return {name: cost for artifact in self.store.used.values() for name, cost in artifact.costs.items()}

    def _train(
        self,
        stage: str,
        make: Callable[[Path], Mapping[str, Any]],
        *,
        config: TrainConfig,
        without: frozenset[str] = frozenset(),
        seed: int | None = None,
        **rest: Any,
    ) -> Artifact:
        settings = {**config.model_dump(exclude=set(without)), "precision": self.recipe.engine.precision}
        return self.store.build(
            stage, make, config=settings, seed=self.recipe.seed if seed is None else seed, together=True, **rest
        )

    def _build(
        self, stage: str, make: Callable[[Path], Mapping[str, Any]], *, config: BaseModel, **rest: Any
    ) -> Artifact:
        return self.store.build(stage, make, config=config.model_dump(), seed=self.recipe.seed, **rest)
