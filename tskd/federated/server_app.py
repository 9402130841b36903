"""What the server does: Flower's ServerApp, the same in a simulation and on a machine. It has no image of any site."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from tskd.console import say
from tskd.engine.checkpoints import load_checkpoint, save_checkpoint
from tskd.errors import Paused, UserError
from tskd.federated.messages import (
    ANSWERS,
    ARRAYS,
    CONFIG,
    FEDERATION,
    RESULT,
    ROUND,
    SCORES,
    TERMS,
    Reply,
    as_arrays,
    as_tensors,
    size,
)
from tskd.federated.privacy import SYSTEM
from tskd.federated.site import Numbers
from tskd.federated.strategies import Noise, Rounds, build_rounds
from tskd.recipe.schema import FederatedConfig

Work = Callable[[Grid], None]


def build_server_app(work: Work) -> ServerApp:
    """Return the app that the server runs: it does the work over Flower's grid of sites."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        work(grid)

    return app


@dataclass
class Averaging:
    """The teacher's trained tensors, averaged round by round; the state of each round is kept in a folder."""

    config: FederatedConfig
    common: Mapping[str, str]
    """``FEDERATION`` and ``TERMS``."""
    initial: Mapping[str, Tensor]
    folder: Path
    out_of_time: Callable[[], bool] = lambda: False
    noise: Noise = lambda _: SYSTEM
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Of the best round: the highest mean validation score; without validation of the last."""
    round: int = 0
    """Which that is."""
    score: float = -math.inf
    log: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, grid: Grid) -> None:
        """Do the rounds that are left; Paused when time is up, the state being kept."""
        state = load_checkpoint(self.folder)
        current = dict(self.initial)
        if state is not None:
            current, self.tensors = state["current"], state["tensors"]
            self.round, self.score, self.log = state["round"], state["score"], state["log"]
            say(f"federated: the server goes on after round {len(self.log)} of {self.config.rounds}")
        done = len(self.log)
        if done == self.config.rounds:
            return
        strategy = build_rounds(self.config, self.common, before=done, noise=self.noise)
        strategy.log = self.log
        strategy.start(
            grid, as_arrays(current), num_rounds=self.config.rounds - done, timeout=self.config.timeout,
            evaluate_fn=self._keep,
        )  # fmt: skip

    def _keep(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Choose and keep; Flower calls it after each round, and before the first, when there is nothing to keep."""
        if server_round == 0:
            return None
        entry, current = self.log[-1], as_tensors(arrays)
        score = entry.get("score")
        unjudged = score is None and self.score == -math.inf  # later ones without a score take no judged one's place
        if unjudged or (score is not None and score > self.score):
            self.tensors, self.round = current, entry["round"]
            self.score = self.score if score is None else score
        said = "" if score is None else f", validation Dice {score:.3f}"
        say(f"federated: round {entry['round']} of {self.config.rounds}, {len(entry['sites'])} sites{said}")
        state = {
            "current": current, "tensors": self.tensors, "round": self.round, "score": self.score, "log": self.log,
        }  # fmt: skip
        save_checkpoint(self.folder, entry["round"], state)
        if self.out_of_time() and entry["round"] < self.config.rounds:
            raise Paused(f"federated: paused after round {entry['round']} of {self.config.rounds}")
        return None


@dataclass
class Asking:
    """The sites' answers on the shared images, asked for once."""

    config: FederatedConfig
    common: Mapping[str, str]
    accept: Callable[[Mapping[str, np.ndarray]], None]
    """Raises UserError where what a site has sent are no answers."""
    replies: list[Reply] = field(default_factory=list)
    sent: int = 0

    def __call__(self, grid: Grid) -> None:
        rounds = Rounds().begin(self.config, self.common, before=0)
        content = RecordDict({CONFIG: ConfigRecord({ROUND: 0, **self.common})})
        self.sent = size(content)
        asked = [
            Message(content, dst_node_id=node, message_type=f"train.{ANSWERS}") for node in rounds.nodes(grid)
        ]  # fmt: skip
        found = rounds.open(grid.send_and_receive(asked, timeout=self.config.timeout), "answers")
        for one in found:
            try:
                self.accept(one.arrays)
            except UserError as error:
                raise UserError(f"site {one.site}: {error}") from error
        rounds.require_enough(found, "answers")
        self.replies = found


@dataclass
class Handing:
    """What was learned, handed to the sites that are there."""

    config: FederatedConfig
    common: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    round: int
    """After which the teacher was the best; 0: there were no rounds."""
    wait: bool
    """For all sites to be connected: where nothing was asked of them before."""
    kept: dict[str, Numbers] = field(default_factory=dict)
    """The sites that have it, and what they tell of their scores."""

    def __call__(self, grid: Grid) -> None:
        rounds = Rounds().begin(self.config, self.common, before=0)
        content = RecordDict({
            ARRAYS: as_arrays(self.tensors), CONFIG: ConfigRecord({ROUND: self.round, **self.common})
        })  # fmt: skip
        nodes = rounds.nodes(grid) if self.wait else sorted(grid.get_node_ids())
        sent = [Message(content, dst_node_id=node, message_type=f"evaluate.{RESULT}") for node in nodes]
        replies = grid.send_and_receive(sent, timeout=self.config.timeout)
        self.kept = {one.site: one.numbers for one in rounds.open(replies, "the result", also=SCORES)}


def common(federation: str, terms: str) -> dict[str, str]:
    """Return what every message of the server says beside its round."""
    return {FEDERATION: federation, TERMS: terms}
