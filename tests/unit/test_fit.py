"""The training loop: what a kill, a pause, a damaged file or a bad image may and may not change."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn

from tskd.engine import FitResult, Runtime, Training, fit, open_runtime
from tskd.engine.checkpoints import load_checkpoint
from tskd.engine.fit import running_statistics
from tskd.engine.logs import read_log
from tskd.errors import Paused, RunFailed, UserError
from tskd.recipe.schema import EngineConfig, TrainConfig
from tskd.seeding import torch_generator
from tskd.types import Batch

SETTINGS = TrainConfig(steps=24, batch_size=4, lr=0.05, validate_every=4, ema=0.8)
EVERY_STEP = Runtime(open_runtime(EngineConfig(accelerator="cpu")).fabric, checkpoint_seconds=0)
"""Saves the state whenever it may."""
FLOAT16 = open_runtime(EngineConfig(accelerator="cpu", precision="16-mixed", checkpoint_seconds=0))


class Killed(Exception):
    """Stands for a kill: raised in the middle of a training."""


class Network(nn.Module):
    """Dropout draws from the global stream and batch norm has state apart from the weights: both must be resumed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.GELU(), nn.Linear(8, 1))

    def forward(self, values: Tensor) -> Tensor:
        return self.layers(values)


def read_batch(step: int, part: int, parts: int) -> Batch:
    values = torch.randn(SETTINGS.batch_size, 6, generator=torch_generator("fit test", step))
    chosen = values.chunk(parts)[part]
    return Batch(chosen, chosen, names=tuple(f"image{step}-{part}" for _ in chosen))


def step(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    target = batch.images.sum(dim=1, keepdim=True).sin()
    return {"loss": (module(batch.images) - target).square().mean()}


def validate(module: nn.Module) -> Mapping[str, float]:
    """A score that goes up and down, so that the last validation is not the best one.

    That is made of how many batches the network has seen. Its answers, which differ a little between processors, are
    a thousandth of it.
    """
    assert isinstance(module, Network)
    seen = module.layers[1].num_batches_tracked
    with torch.no_grad():
        answers = module(read_batch(10**6, 0, 1).images)
    return {"score": math.cos(seen) + 0.001 * float(torch.tanh(answers).mean())}


def training(settings: TrainConfig = SETTINGS, module: nn.Module | None = None) -> Training:
    return Training("test", module or Network(), step, read_batch, settings, seed=3, validate=validate)


def selected(work: Training) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in work.module.state_dict().items()}


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def uninterrupted(settings: TrainConfig, folder: Path) -> tuple[dict[str, Tensor], FitResult]:
    folder.mkdir()
    work = training(settings)
    result = fit(work, folder, EVERY_STEP)
    return selected(work), replace(result, seconds=0.0)


def kill_at(kill: int) -> Callable[[int, nn.Module], None]:
    def on_step(done: int, module: nn.Module) -> None:
        if done == kill:
            raise Killed

    return on_step


def broken_by(folder: Path, settings: TrainConfig, kills: list[int]) -> tuple[dict[str, Tensor], FitResult]:
    """Train with a kill after each of these steps, each time going on with a new module as a new process would."""
    folder.mkdir()
    for kill in kills:
        with pytest.raises(Killed):
            fit(replace(training(settings), on_step=kill_at(kill)), folder, EVERY_STEP)
    work = training(settings)
    result = fit(work, folder, EVERY_STEP)
    return selected(work), replace(result, seconds=0.0)


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulate": 2}, {"ema": 0.0}, {"patience": 2}, {"validate_every": 6}, {"validate_every": 12}],
    ids=str,
)
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, changes: dict[str, object]) -> None:
    settings = SETTINGS.model_copy(update=changes)
    expected = uninterrupted(settings, tmp_path / "whole")
    assert 0 < expected[1].best_step < settings.steps, "the best weights must not be the last, or selection is untested"
    weights, result = broken_by(tmp_path / "broken", settings, [1, 4, 8, 11, 13])
    assert_same(weights, expected[0])
    assert result == expected[1]


def test_a_kill_right_after_a_validation_does_not_lose_it(tmp_path: Path) -> None:
    """The state at a validation step is saved after its score is known, not before."""
    work = replace(training(), on_step=kill_at(5))
    with pytest.raises(Killed):
        fit(work, tmp_path, EVERY_STEP)
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["result"]["steps"] == 4
    assert state["result"]["best_step"] == 4


@pytest.mark.parametrize("accumulate", [1, 2])
def test_pausing_at_every_step_changes_nothing(tmp_path: Path, accumulate: int) -> None:
    settings = SETTINGS.model_copy(update={"accumulate": accumulate, "steps": 9})
    expected, _ = uninterrupted(settings, tmp_path / "whole")
    hurried = replace(EVERY_STEP, checkpoint_seconds=1e9, deadline=time.monotonic())
    for done in range(1, 9):
        with pytest.raises(Paused, match=f"test paused at step {done}/9"):
            fit(training(settings), tmp_path, hurried)
    last = training(settings)
    fit(last, tmp_path, hurried)
    assert_same(selected(last), expected)


def test_a_finished_training_is_loaded_not_trained_again(tmp_path: Path) -> None:
    first = training()
    fit(first, tmp_path, EVERY_STEP)

    def never(step: int, part: int, parts: int) -> Batch:
        raise AssertionError("no batch should be read")

    second = replace(training(), batches=never)
    fit(second, tmp_path, EVERY_STEP)
    assert_same(selected(second), selected(first))


def test_a_damaged_newest_checkpoint_costs_time_but_not_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, _ = uninterrupted(SETTINGS, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(replace(training(), on_step=kill_at(17)), tmp_path, EVERY_STEP)
    newest = max((tmp_path / "checkpoints").glob("*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    work = training()
    fit(work, tmp_path, EVERY_STEP)
    shown = capsys.readouterr().err
    assert f"{newest.name} is damaged" in shown
    assert "resumed at step 12" in shown
    assert_same(selected(work), expected)


def test_batches_cut_into_parts_give_the_same_weights(tmp_path: Path) -> None:
    """Without dropout and batch norm, which see the parts, the sum of the parts' gradients is the batch's."""

    def plain() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 1))

    weights = []
    for accumulate in (1, 2, 4):
        folder = tmp_path / str(accumulate)
        folder.mkdir()
        settings = SETTINGS.model_copy(update={"accumulate": accumulate})
        work = replace(training(settings, plain()), validate=None)
        fit(work, folder, EVERY_STEP)
        weights.append(selected(work))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weights[2][name], value, rtol=1e-4, atol=1e-5)


def test_a_batch_that_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size 4 cannot be cut into 3 equal parts"):
        fit(training(SETTINGS.model_copy(update={"accumulate": 3})), tmp_path, EVERY_STEP)


def not_finite_at(bad: int, *, loss: bool) -> Callable[[nn.Module, Batch], Mapping[str, Tensor]]:
    """A step whose loss, or only its gradient, is not finite for the batch of one step."""

    def bad_step(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        value = step(module, batch)["loss"]
        if batch.names[0] == f"image{bad}-0":
            value = value * math.nan if loss else (value - value.detach()).sqrt()  # the root's slope at 0 is infinite
        return {"loss": value}

    return bad_step


@pytest.mark.parametrize("loss", [True, False], ids=["loss", "gradient"])
def test_numbers_that_are_not_finite_stop_the_training_and_spare_the_state(tmp_path: Path, loss: bool) -> None:
    """Step 11 ends a window of the log: saving there without looking at the gradient would keep broken weights."""
    work = replace(training(), step=not_finite_at(11, loss=loss))
    with pytest.raises(RunFailed, match=r"step 11 is not finite .*image11-0, image11-0, image11-0, image11-0"):
        fit(work, tmp_path, EVERY_STEP)
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["result"]["steps"] == 8
    assert all(bool(value.isfinite().all()) for value in state["weights"].values())
    mended = training()
    fit(mended, tmp_path, EVERY_STEP)
    assert_same(selected(mended), uninterrupted(SETTINGS, tmp_path / "whole")[0])


def overflowing(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """A loss whose gradient is beyond float16 at the first scale and within it a few skipped steps later."""
    return {"loss": 10 * step(module, batch)["loss"]}


def in_float16(kills: list[int], folder: Path) -> Training:
    """Train in float16 with these kills."""
    folder.mkdir()
    for kill in kills:
        with pytest.raises(Killed):
            fit(replace(training(), step=overflowing, on_step=kill_at(kill)), folder, FLOAT16)
    work = replace(training(), step=overflowing)
    fit(work, folder, FLOAT16)
    return work


def test_a_killed_training_in_float16_goes_on_with_the_scale_it_had(tmp_path: Path) -> None:
    whole = in_float16([], tmp_path / "whole")
    lines = read_log(tmp_path / "whole")
    skipped = sum(line.get("skipped_steps", 0) for line in lines)
    assert 0 < skipped < 8, "a resume with a new scaler would skip steps again"
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert_same(selected(in_float16([9, 14], tmp_path / "broken")), selected(whole))


def test_trainings_in_float16_do_not_hand_on_their_scale(tmp_path: Path) -> None:
    """The second of one process skips as many steps as the first, so that both are what they would be alone."""
    first, second = (selected(in_float16([], tmp_path / name)) for name in ("first", "second"))
    assert_same(first, second)


def test_a_bad_image_costs_float16_a_step_and_bad_images_alone_stop_it(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    work = replace(training(), step=not_finite_at(11, loss=False))
    assert fit(work, tmp_path / "one", FLOAT16).steps == SETTINGS.steps
    assert [line["skipped_steps"] for line in read_log(tmp_path / "one") if line["step"] == 12 and "loss" in line] == [
        1
    ]
    assert all(bool(value.isfinite().all()) for value in selected(work).values())

    def all_bad(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        value = step(module, batch)["loss"]
        return {"loss": (value - value.detach()).sqrt()}

    with pytest.raises(RunFailed, match=r"step 16 is not finite .*engine.precision=32-true"):
        fit(replace(training(), step=all_bad), tmp_path, FLOAT16)


def test_a_compiled_training_can_be_resumed_without_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in the checkpoint are those of the module itself, and validation does not see the compiled one."""
    expected, _ = uninterrupted(SETTINGS, tmp_path / "whole")
    compiled: list[nn.Module] = []
    original = torch.compile

    def compile_fast(module: nn.Module, **options: object) -> nn.Module:
        compiled.append(module)
        return original(module, **{"backend": "eager", **options})  # the graph is captured, not made machine code

    monkeypatch.setattr(torch, "compile", compile_fast)
    with pytest.raises(Killed):
        fit(replace(training(), on_step=kill_at(9)), tmp_path, replace(EVERY_STEP, compile=True))
    assert compiled
    compiled.clear()
    work = training()
    fit(work, tmp_path, EVERY_STEP)
    assert not compiled
    for name, value in selected(work).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_only_the_loss_stops_a_training(tmp_path: Path) -> None:
    def with_note(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {**step(module, batch), "undefined": torch.tensor(math.nan)}

    assert fit(replace(training(), step=with_note), tmp_path, EVERY_STEP).steps == SETTINGS.steps


def test_a_batch_that_cannot_be_read_names_its_step_and_its_cause(tmp_path: Path) -> None:
    def unreadable(step: int, part: int, parts: int) -> Batch:
        if step == 3:
            raise OSError("images.npy: input/output error")
        return read_batch(step, part, parts)

    with pytest.raises(RunFailed, match=r"test: reading the batch of step 3 failed: images.npy") as failure:
        fit(replace(training(), batches=unreadable), tmp_path, EVERY_STEP)
    assert isinstance(failure.value.__cause__, OSError)


def test_log_lines_past_the_state_are_dropped(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"validate_every": 8})
    whole = tmp_path / "whole"
    uninterrupted(settings, whole)
    with pytest.raises(Killed):
        fit(replace(training(settings), on_step=kill_at(9)), tmp_path, EVERY_STEP)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": 99}\n{"step": 11, "lo')  # written after the state, the last one cut short
    fit(training(settings), tmp_path, EVERY_STEP)
    lines = [{**line, "seconds": 0} for line in read_log(tmp_path)]
    assert lines == [{**line, "seconds": 0} for line in read_log(whole)]
    assert [line["step"] for line in lines if "val_score" in line] == [8, 16, 24]


def test_patience_counts_validations_without_a_better_score(tmp_path: Path) -> None:
    scores = iter([0.1, 0.5, 0.5, 0.4, 0.9, 0.9])
    work = training(SETTINGS.model_copy(update={"patience": 2}))
    result = fit(replace(work, validate=lambda module: {"score": next(scores)}), tmp_path, EVERY_STEP)
    assert (result.steps, result.best_step, result.best_score) == (16, 8, 0.5)


def test_without_validation_the_averaged_weights_are_kept(tmp_path: Path) -> None:
    """The average by hand: it starts at the initial weights and moves by 1 - min(0.8, (1 + t) / (10 + t))."""
    work = replace(training(), validate=None)
    expected = work.module.layers[0].weight.detach().clone()

    def follow(done: int, module: nn.Module) -> None:
        decay = min(0.8, done / (9 + done))
        expected.lerp_(module.layers[0].weight.detach(), 1 - decay)

    fit(replace(work, on_step=follow), tmp_path, EVERY_STEP)
    torch.testing.assert_close(work.module.layers[0].weight, expected)


def test_batch_norm_statistics_are_averaged_as_the_weights_are(tmp_path: Path) -> None:
    """By hand, as above; the counter of batches is no statistic and is that of the last step."""
    work = replace(training(), validate=None)
    norm = work.module.layers[1]
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()

    def follow(done: int, module: nn.Module) -> None:
        decay = min(0.8, done / (9 + done))
        mean.lerp_(norm.running_mean, 1 - decay)
        variance.lerp_(norm.running_var, 1 - decay)
        last.update(mean=norm.running_mean.clone())

    last: dict[str, Tensor] = {}
    fit(replace(work, on_step=follow), tmp_path, EVERY_STEP)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert (norm.running_mean - last["mean"]).abs().max() > 1e-3, "or nothing was told apart"
    assert norm.num_batches_tracked == SETTINGS.steps


def test_only_running_statistics_are_averaged(tmp_path: Path) -> None:
    """A buffer that training moves, as MoCo's momentum encoder, is no statistic; a frozen norm stays as it is."""

    class Follower(Network):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.frozen = FrozenBatchNormAct2d(8)
            self.frozen.running_mean.uniform_(-1, 1)

        def forward(self, values: Tensor) -> Tensor:
            self.seen += self.training
            return super().forward(values)

    module = Follower()
    before = module.frozen.running_mean.clone()
    fit(replace(training(module=module), validate=None), tmp_path, EVERY_STEP)
    assert module.seen == SETTINGS.steps
    assert torch.equal(module.frozen.running_mean, before)
    assert set(running_statistics(module)) == {"layers.1.running_mean", "layers.1.running_var"}


def test_batch_norm_statistics_belong_to_the_selected_weights(tmp_path: Path) -> None:
    """The answer of the selected network scores what its validation said."""
    work = training()
    result = fit(work, tmp_path, EVERY_STEP)
    assert result.best_step < result.steps
    assert validate(work.module)["score"] == result.best_score
    assert not work.module.training


@pytest.mark.parametrize("name", ["layers.0.weight", "layers.1.running_mean"])
def test_validation_sees_the_average_and_training_goes_on_from_the_last(tmp_path: Path, name: str) -> None:
    seen: list[Tensor] = []
    trained: list[Tensor] = []

    def look(module: nn.Module) -> Mapping[str, float]:
        assert not module.training
        seen.append(module.state_dict()[name].clone())
        return {"score": 0.0}

    def follow(done: int, module: nn.Module) -> None:
        assert module.training
        trained.append(module.state_dict()[name].clone())

    settings = SETTINGS.model_copy(update={"validate_every": 1, "steps": 4})
    fit(replace(training(settings), validate=look, on_step=follow), tmp_path, EVERY_STEP)
    undisturbed: list[Tensor] = []

    def record(done: int, module: nn.Module) -> None:
        undisturbed.append(module.state_dict()[name].clone())

    (tmp_path / "other").mkdir()
    fit(replace(training(settings), validate=None, on_step=record), tmp_path / "other", EVERY_STEP)
    assert all(torch.equal(a, b) for a, b in zip(trained, undisturbed, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(seen, trained, strict=True))


def test_the_gradient_is_clipped_to_the_norm(tmp_path: Path) -> None:
    """A huge slope: every step sees a gradient of norm 0.5 at most, the log tells the norm before."""
    norms: list[float] = []

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6))

        def forward(self, values: Tensor) -> Tensor:
            return values @ self.weight

    module = Slope()
    original = torch.optim.AdamW.step

    def spy(optimizer: torch.optim.AdamW, *rest: object, **more: object) -> object:
        norms.append(float(module.weight.grad.norm()))  # type: ignore[union-attr]
        return original(optimizer, *rest, **more)  # type: ignore[arg-type]

    work = Training(
        "test",
        module,
        lambda network, batch: {"loss": 1e4 * network(batch.images).mean()},
        read_batch,
        SETTINGS.model_copy(update={"clip": 0.5, "steps": 3}),
        seed=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        fit(work, tmp_path, EVERY_STEP)
    assert norms == pytest.approx([0.5] * 3, rel=1e-3)
    assert read_log(tmp_path)[0]["gradient_norm"] > 1000


def test_frozen_parameters_stay_and_are_not_in_the_state(tmp_path: Path) -> None:
    module = Network()
    module.layers[0].requires_grad_(False)
    before = module.layers[0].weight.clone()
    fit(training(module=module), tmp_path, EVERY_STEP)
    assert torch.equal(module.layers[0].weight, before)
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert not any(name.startswith("layers.0.") for name in state["weights"])


def test_the_learning_rate_follows_the_schedule_of_the_group(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 20, "warmup": 0.5, "validate_every": 1})
    fit(replace(training(settings), lr=0.01), tmp_path, EVERY_STEP)
    rates = {line["step"]: line["lr"] for line in read_log(tmp_path) if "lr" in line}
    assert rates[1] == pytest.approx(0.001)
    assert rates[10] == pytest.approx(0.01)
    assert rates[16] == pytest.approx(0.005)


@pytest.mark.parametrize(("candidate", "kept"), [(True, 0), (False, 4)])
def test_the_start_is_kept_where_it_is_a_candidate_and_nothing_later_is_better(
    tmp_path: Path, candidate: bool, kept: int
) -> None:
    scores = iter([1.0, *[0.5] * 6] if candidate else [0.5] * 6)
    module = Network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    work = replace(training(module=module), validate=lambda _: {"score": next(scores)}, validate_start=candidate)
    assert fit(work, tmp_path, EVERY_STEP).best_step == kept
    same = all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert same is candidate
