"""The training loop: every training of every stage goes through :func:`fit`."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tskd.console import Advance, progress, say
from tskd.engine.batches import Batches
from tskd.engine.bf16 import slow_operators_avoided
from tskd.engine.checkpoints import load_checkpoint, save_checkpoint
from tskd.engine.logs import TrainingLog
from tskd.engine.out_of_memory import memory_explained, training_remedies
from tskd.engine.runtime import Runtime
from tskd.engine.schedules import learning_rate_factor, parameter_groups
from tskd.errors import Paused, RunFailed, UserError
from tskd.recipe.schema import TrainConfig
from tskd.seeding import derive
from tskd.types import Batch, StepFn

LOG_EVERY = 10
"""Steps between two looks at the loss: each look makes a GPU wait."""
LEAST_SCALE = 1.0
"""Of float16 gradients. A gradient that is not finite at its true size is not overflow of scaling; from the first scale
(2^16) it takes 17 skipped steps in a row to get below."""

Validate = Callable[[nn.Module], Mapping[str, float]]
"""Scores a network; ``score`` is what selects the weights, higher is better."""


@dataclass(frozen=True)
class Training:
    """What is trained, on what, for how long."""

    label: str
    module: nn.Module
    step: StepFn
    batches: Batches
    settings: TrainConfig
    seed: int
    validate: Validate | None = None
    """None: the last weights are kept."""
    validate_start: bool = False
    """The weights it starts from are a candidate too: for a start that is already trained."""
    layer_decay: float = 1.0
    encoder_lr: float = 1.0
    """Factor of the learning rate in the encoder."""
    lr: float | None = None
    """None: as the settings say."""
    place: tuple[int, int] | None = None
    """Where it lies in a longer training that is done in parts: the steps before it, and those of the whole; its
    learning rate is that of its place. None: it is the whole."""
    on_step: Callable[[int, nn.Module], None] | None = None
    """Looks at the network after each step, e.g. to draw samples; must change nothing."""


@dataclass
class FitResult:
    """How a training went; the module holds the selected weights."""

    steps: int = 0
    best_step: int = 0
    best_score: float = -math.inf
    misses: int = 0
    """Validations since the best one."""
    seconds: float = 0.0


def fit(training: Training, folder: Path, runtime: Runtime) -> FitResult:
    """Train until the steps are done or patience ends, leave the selected weights in the module.

    The state is kept in ``folder``; a killed or paused training goes on from it and ends with the same weights, bit by
    bit on a CPU. Raises Paused when the time limit is reached and RunFailed when the loss is not finite or the memory
    does not suffice.
    """
    remedies = training_remedies(training.settings, runtime)
    with (
        memory_explained(training.label, runtime.fabric.device, remedies),
        slow_operators_avoided(training.module, runtime),
    ):
        loop = _Loop(training, folder, runtime)
        loop.restore()
        if not loop.finished:
            loop.run()
        loop.select()
    return loop.result


class _Loop:
    """The state of one training: what a checkpoint holds, and what moves it."""

    def __init__(self, training: Training, folder: Path, runtime: Runtime) -> None:
        self.training, self.folder, self.runtime = training, folder, runtime
        settings = training.settings
        self.parts = settings.accumulate * runtime.fabric.world_size
        if settings.batch_size % self.parts:
            raise UserError(
                f"batch_size {settings.batch_size} cannot be cut into {self.parts} equal parts "
                f"(accumulate {settings.accumulate} x {runtime.fabric.world_size} processes): choose a multiple of it"
            )
        groups = parameter_groups(
            training.module,
            lr=training.lr or settings.lr,
            weight_decay=settings.weight_decay,
            layer_decay=training.layer_decay,
            encoder_lr=training.encoder_lr,
        )
        self.scaler = runtime.new_scaler()
        optimizer = torch.optim.AdamW(groups, fused=self.scaler is None)  # a fused one cannot clip scaled gradients
        # a wrapper, not the module itself: validation, whose batches have other shapes, stays as it is
        module = torch.compile(training.module) if runtime.compile else training.module
        self.module, self.optimizer = runtime.fabric.setup(module, optimizer)
        self.weights = {name: p for name, p in training.module.named_parameters() if p.requires_grad}
        self.buffers = dict(training.module.named_buffers())
        self.averaged = {**self.weights, **running_statistics(training.module)}
        self.average = {name: value.detach().clone() for name, value in self.averaged.items()} if settings.ema else {}
        self.best: dict[str, Tensor] = {}
        self.result = FitResult()
        self.last_save = time.monotonic()

    @property
    def finished(self) -> bool:
        settings = self.training.settings
        patient = settings.patience is None or self.result.misses < settings.patience
        return self.result.steps >= settings.steps or not patient

    def run(self) -> None:
        training, result = self.training, self.result
        log = TrainingLog(self.folder, step=result.steps) if self.runtime.fabric.is_global_zero else None
        pending: list[tuple[int, dict[str, Tensor]]] = []
        began = time.monotonic() - result.seconds
        total = training.settings.steps
        if training.validate_start and result.steps == 0:
            self._validate(log)
        self.module.train()
        with progress(training.label, total, start=result.steps) as advance:
            for parts in self._upcoming():
                pending.append((result.steps, self._update(result.steps, parts)))
                result.steps += 1
                result.seconds = time.monotonic() - began
                at_validation = result.steps % training.settings.validate_every == 0 or result.steps == total
                looking = at_validation or len(pending) == LOG_EVERY or self._out_of_time_alone
                if looking:
                    self._report(pending, log, advance)
                    pending.clear()
                if at_validation:
                    self._validate(log)
                if training.on_step is not None:
                    training.on_step(result.steps, training.module)
                if self.finished:
                    break
                if looking:
                    self._save_if_due()
        self._save()

    @property
    def _out_of_time_alone(self) -> bool:
        """Several processes ask for the time only where they look at the loss: asking together costs as much."""
        return self.runtime.fabric.world_size == 1 and self.runtime.out_of_time

    def _upcoming(self) -> Iterator[list[Batch]]:
        """Yield the parts of each coming batch for this process; on a GPU the next batch is read during the step."""
        steps = range(self.result.steps, self.training.settings.steps)
        if self.runtime.fabric.device.type == "cpu":  # a second thread would take the cores from the step
            yield from (self._read(step) for step in steps)
            return
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._read, steps.start)
            for step in steps:
                parts = coming.result()
                if step + 1 < steps.stop:
                    coming = reader.submit(self._read, step + 1)
                yield parts

    def _read(self, step: int) -> list[Batch]:
        fabric = self.runtime.fabric
        first = fabric.global_rank * self.training.settings.accumulate
        try:
            return [
                fabric.to_device(self.training.batches(step, part, self.parts))
                for part in range(first, first + self.training.settings.accumulate)
            ]
        except (OSError, ValueError, RuntimeError) as error:
            raise RunFailed(f"{self.training.label}: reading the batch of step {step} failed: {error}") from error

    def _update(self, step: int, parts: list[Batch]) -> dict[str, Tensor]:
        settings, fabric = self.training.settings, self.runtime.fabric
        before, whole = self.training.place or (0, settings.steps)
        factor = learning_rate_factor(before + step, whole, settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        losses: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=fabric.device))
        for number, batch in enumerate(parts):
            # dropout and the like draw from the global stream: naming the step makes them the same after a resume
            torch.manual_seed(derive(self.training.seed, "step", step, fabric.global_rank, number))
            with fabric.no_backward_sync(self.module, enabled=fabric.world_size > 1 and number + 1 < len(parts)):
                answer = self.training.step(self.module, batch)
                fabric.backward(answer["loss"] / len(parts))
            for name, value in answer.items():
                losses[name] = losses[name] + value.detach() / len(parts)
        norm = fabric.clip_gradients(self.module, self.optimizer, max_norm=settings.clip, error_if_nonfinite=False)
        assert norm is not None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._move_average(step)
        return {**losses, "gradient_norm": norm.detach()}

    def _move_average(self, step: int) -> None:
        if self.average:
            decay = min(self.training.settings.ema, (1 + step) / (10 + step))
            current = [value.detach() for value in self.averaged.values()]
            torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)

    def _report(self, pending: list[tuple[int, dict[str, Tensor]]], log: TrainingLog | None, advance: Advance) -> None:
        """Log the mean losses of the pending steps over all processes; no state is ever saved after a step whose loss
        or gradient was not finite, unless the scaler skipped the step."""
        names = list(pending[0][1])
        table = torch.stack([torch.stack([losses[name].float() for name in names]) for _, losses in pending])
        values = self.runtime.fabric.all_reduce(table, reduce_op="mean").tolist()
        can_skip = self.scaler is not None and self.scaler.get_scale() >= LEAST_SCALE
        for (step, _), row in zip(pending, values):
            losses = dict(zip(names, row))
            if not math.isfinite(losses["loss"] + (0 if can_skip else losses["gradient_norm"])):
                raise RunFailed(self._not_finite(step, losses))
        means = {name: sum(column) / len(pending) for name, column in zip(names, zip(*values))}
        if not math.isfinite(means["gradient_norm"]):
            means |= _of_taken([row[names.index("gradient_norm")] for row in values])
        advance(self.result.steps, f"loss {means['loss']:.4f}")
        if log is not None:
            rate = self.optimizer.param_groups[-1]["lr"]
            log.write(self.result.steps, {**means, "lr": rate, "seconds": self.result.seconds})

    def _not_finite(self, step: int, losses: Mapping[str, float]) -> str:
        names = ", ".join(name for part in self._read(step) for name in part.names)
        values = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        wider = ", or set engine.precision=32-true: float16 ends at 65504" if self.scaler else ""
        return (
            f"{self.training.label}: the loss or its gradient in step {step} is not finite ({values}). "
            f"Batch: {names or 'unnamed'}. The last good checkpoint is kept. "
            f"Look at these images, or lower the learning rate (lr){wider}."
        )

    def _validate(self, log: TrainingLog | None) -> None:
        if self.training.validate is None:
            return
        with _Swapped(self.averaged, self.average):
            self.training.module.eval()
            scores = self.runtime.fabric.broadcast(dict(self.training.validate(self.training.module)))
            self.module.train()
        result = self.result
        result.misses += 1
        if scores["score"] > result.best_score:
            result.best_score, result.best_step, result.misses = scores["score"], result.steps, 0
            chosen = self.buffers | (self.average or self._current())
            self.best = {name: value.clone() for name, value in chosen.items()}
        if log is not None:
            log.write(result.steps, {f"val_{name}": value for name, value in scores.items()})

    def _current(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.weights.items()}

    def select(self) -> None:
        """Put the best weights (without validation: the averaged ones) into the module."""
        chosen = self.best or self.average
        own = self.weights | self.buffers
        with torch.no_grad():
            for name, value in chosen.items():
                own[name].copy_(value)
        self.training.module.eval()

    def _save_if_due(self) -> None:
        """Save when it is time and pause when there is no more; the first process decides, since clocks differ."""
        due = time.monotonic() - self.last_save >= self.runtime.checkpoint_seconds
        due, late = self.runtime.fabric.broadcast((due, self.runtime.out_of_time))
        if due or late:
            self._save()
        if late:
            raise Paused(f"{self.training.label} paused at step {self.result.steps}/{self.training.settings.steps}")

    def _save(self) -> None:
        if self.runtime.fabric.is_global_zero:
            save_checkpoint(self.folder, self.result.steps, self._state())
        self.runtime.fabric.barrier()
        self.last_save = time.monotonic()

    def _state(self) -> dict[str, Any]:
        return {
            "result": asdict(self.result),
            "weights": self._current(),
            "buffers": self.buffers,
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "best": self.best,
            "scaler": self.scaler.state_dict() if self.scaler else {},
        }

    def restore(self) -> None:
        """Take over the newest checkpoint of the folder, if there is one."""
        state = load_checkpoint(self.folder)
        if state is None:
            return
        self.result = FitResult(**state["result"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        device = self.runtime.fabric.device
        with torch.no_grad():
            for name, value in state["weights"].items():
                self.weights[name].copy_(value)
            for name, buffer in self.buffers.items():
                buffer.copy_(state["buffers"][name])
        self.average = {name: value.to(device) for name, value in state["average"].items()}
        self.best = {name: value.to(device) for name, value in state["best"].items()}
        if not self.finished:
            say(f"{self.training.label}: resumed at step {self.result.steps}")


def _of_taken(norms: list[float]) -> dict[str, float]:
    """Return what the log says where the scaler skipped some steps: the norm of the others, and how many it were."""
    taken = [norm for norm in norms if math.isfinite(norm)]
    return {"gradient_norm": sum(taken) / max(len(taken), 1), "skipped_steps": len(norms) - len(taken)}


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Return the running means and variances of a network's norms by name: they belong to the weights they came from.

    An average of weights needs an average of them (as in timm's ModelEmaV3); those of the last weights do not fit it.
    Other buffers are left alone: constants, counters, the momentum weights of MoCo. Frozen norms have no running ones.
    """
    return {
        f"{place}.{name}" if place else name: buffer
        for place, norm in module.named_modules()
        if isinstance(norm, nn.modules.batchnorm._NormBase)  # noqa: SLF001 (of all batch norms)
        for name, buffer in norm.named_buffers(recurse=False)
        if name in ("running_mean", "running_var")
    }


class _Swapped:
    """Within the block the tensors hold other values."""

    def __init__(self, tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        self.tensors, self.values = tensors, values

    def __enter__(self) -> None:
        self.kept = {name: self.tensors[name].detach().clone() for name in self.values}
        self._put(self.values)

    def __exit__(self, *_: object) -> None:
        self._put(self.kept)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.tensors[name].copy_(value)
