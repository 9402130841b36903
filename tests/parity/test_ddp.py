"""Two processes give the weights of one process with the same global batch."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import tskd
from tests.conftest import Started

PROGRAM = '''
"""Trains a small network; run alone, or once for each rank with torchrun's variables set."""
import os
import sys
from pathlib import Path

import torch
from torch import nn

from tskd.recipe.schema import EngineConfig, TrainConfig
from tskd.engine import Training, fit, open_runtime
from tskd.errors import Paused
from tskd.models.decoders import PlainDecoder, convolution
from tskd.seeding import torch_generator
from tskd.types import Batch

folder, devices, accumulate, minutes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
rank = os.environ.get("RANK", "0")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(convolution(3, 8, stride=2), convolution(8, 8, stride=2))
        self.decoder = PlainDecoder((8,), strides=(4,), classes=2, width=16)

    def forward(self, images):
        return self.decoder(images, [self.encoder(images)])


def batches(step, part, parts):
    global position
    position = step
    generator = torch_generator("ddp", step)
    images = torch.rand(8, 3, 16, 16, generator=generator).chunk(parts)[part]
    return Batch(images, images)


def step(module, batch):
    return {"loss": (module(batch.views) - batch.images[:, :2]).square().mean()}


def validate(module):
    """Rank 0 is content twice, rank 1 once: were the score not agreed upon, the ranks would stop apart and hang."""
    return {"score": float(position if rank == "0" and position < 8 else -position)}


position = 0
runtime = open_runtime(EngineConfig(accelerator="cpu", devices=devices, checkpoint_seconds=0), minutes=minutes or None)
torch.manual_seed(int(rank))  # every rank draws other weights: rank 0's hold
settings = TrainConfig(
    steps=24, batch_size=8, accumulate=accumulate, lr=0.01, validate_every=4, ema=0.5, patience=2,
)
module = Network()
work = Training("ddp", module, step, batches, settings, 0, validate)
try:
    result = fit(work, folder, runtime)
except Paused:
    sys.exit(75)
torch.save({**module.state_dict(), "steps": result.steps}, folder / f"rank{rank}.pt")
'''
ROOT = Path(tskd.__file__).parents[1]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


Train = Callable[..., set[int]]


@pytest.fixture(scope="module")
def train(started: Callable[..., Started], program: Path) -> Train:
    return partial(run_program, started, program)


def run_program(
    started: Callable[..., Started],
    program: Path,
    folder: Path,
    *,
    processes: int,
    accumulate: int = 1,
    minutes: float = 0,
) -> set[int]:
    """Run the program in so many processes and return their exit codes."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    running = []
    for rank in range(processes):
        torchrun = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
        }
        environment = torchrun if processes > 1 else {}
        running.append(started(program, folder, processes, accumulate, minutes, environment=environment))
    try:
        ended = [one.ended() for one in running]
    finally:
        for one in running:
            one.process.kill()
    codes = {one.returncode for one in ended}
    assert codes <= {0, 75}, "\n".join(one.stderr for one in ended)
    return codes


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ddp") / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture(scope="module")
def alone(program: Path, train: Train) -> dict[str, torch.Tensor]:
    folder = program.parent / "alone"
    train(folder, processes=1)
    return torch.load(folder / "rank0.pt", weights_only=True)


def assert_close(folder: Path, alone: dict[str, torch.Tensor]) -> None:
    for rank in range(2):
        weights = torch.load(folder / f"rank{rank}.pt", weights_only=True)
        assert weights.pop("steps") == alone["steps"]
        for name, value in weights.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(
    program: Path, train: Train, alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    assert train(tmp_path, processes=2) == {0}
    assert_close(tmp_path, alone)
    one, two = (log_of(folder) for folder in (program.parent / "alone", tmp_path))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)


def log_of(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.slow
def test_fabrics_own_launcher_gives_them_too(
    started: Callable[..., Started], program: Path, alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """It has the processes talk to each other before our program begins; to launch them again would be an error."""
    options = ("--accelerator=cpu", "--devices=2", "--strategy=ddp", f"--main-port={free_port()}")
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ("-m", "lightning_fabric.cli", *options, program, tmp_path, 2, 1, 0)
    ended = started(*command, environment=environment).ended()
    assert ended.returncode == 0, ended.stderr
    assert_close(tmp_path, alone)


@pytest.mark.slow
def test_two_processes_pause_together_and_go_on(train: Train, alone: dict[str, torch.Tensor], tmp_path: Path) -> None:
    assert train(tmp_path, processes=2, accumulate=2, minutes=1e-9) == {75}
    assert train(tmp_path, processes=2, accumulate=2) == {0}
    assert_close(tmp_path, alone)
