"""A distillation put together: whose answers, to which images, stored or asked for, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tskd.artifacts import Artifact, Builder
from tskd.config import DistillConfig
from tskd.data.transfer_set import TransferSet
from tskd.engine import Batches, ImageBatches, Runtime
from tskd.engine.batches import allowed_flips
from tskd.models.flops import gflops, inference_flops
from tskd.models.registry import build_model
from tskd.seeding import derive
from tskd.stages import cache, distill


@dataclass(frozen=True)
class Guide:
    """Whose answers a student learns: the adapted teacher's or, for the task-agnostic arm, the bare one's."""

    digest: str
    """Of all that its answers depend on."""
    load: Callable[[], nn.Module]


@dataclass(frozen=True)
class Distillation:
    """One student, one guide, one transfer set."""

    config: DistillConfig
    student: Mapping[str, Any]
    """The student's description."""
    guide: Guide
    transfer: TransferSet
    inputs: Mapping[str, str]
    """Digests of all of them."""
    seed: int
    runtime: Runtime

    def cache(self, store: Builder) -> Artifact | None:
        """Return the guide's stored answers; None where computing them online is cheaper."""
        if not cache.cache_pays(self.config, len(self.transfer.images)):
            return None
        return store.build(
            "cache",
            self._build_cache,
            config={"views": self.config.views, "augment": self.config.augment.model_dump()},
            inputs=self.inputs,
            seed=self.seed,
            version=cache.VERSION,
            together=True,
        )

    def learn(self, answers: Artifact | None, folder: Path) -> dict[str, Any]:
        """Train the student on stored answers, or (None) on the guide's own; return the metrics."""
        config, guide = self.config, self.guide.load()
        flops = inference_flops(guide, self.transfer.images.shape[1])
        common: dict[str, Any] = {
            "batch_size": config.batch_size,
            "augment": config.augment,
            "seed": derive(self.seed, "transfer batches"),
            "flip": allowed_flips(config.augment, self.transfer.prepared.classes),
        }
        batches: Batches
        if answers is None:
            ask = distill.online(guide, self.runtime)
            batches = ImageBatches(self.transfer.images, None, self.transfer.names, **common)
            asked = config.steps * config.batch_size
        else:
            ask = distill.stored
            batches = cache.CachedBatches(answers.path, self.transfer, **common)
            asked = len(self.transfer.images) * config.views
        metrics = distill.distill(config, self.student, batches, ask, folder, seed=self.seed, runtime=self.runtime)
        return metrics | {"teacher_gflops": gflops(asked * flops)}

    def _build_cache(self, folder: Path) -> Mapping[str, Any]:
        config, guide = self.config, self.guide.load()
        layout = cache.plan_cache(guide, build_model(self.student), self.transfer, views=config.views, seed=self.seed)
        return cache.build_cache(guide, self.transfer, layout, config.augment, folder, runtime=self.runtime)
