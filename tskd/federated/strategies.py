"""The rounds on the server: Flower's FedAvg and FedProx, made deterministic, counted, and able to go on after a stop.

Sites answer in any order, and a sum of floats depends on it: replies are taken in the order of the sites' names. What
is not sent (the norms of ``fedbn``) is not in the arrays that the server begins with; nothing else is needed for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from flwr.supercore.differential_privacy import compute_stdv

from tskd.console import warn
from tskd.errors import RunFailed, UserError
from tskd.federated.messages import ARRAYS, CONFIG, METRICS, ROUND, WEIGHT, Reply, as_arrays, as_tensors, opened, size
from tskd.federated.privacy import SYSTEM, RandomBytes, noisy
from tskd.federated.secure import Summed, exchange
from tskd.recipe.schema import FederatedConfig

WAIT = 0.5
"""Seconds between two looks whether all sites are connected."""


Noise = Callable[[int], RandomBytes]
"""Returns what the noise of a round is drawn from."""


class Rounds(FedAvg):
    """Federated averaging over all sites that are there, weighted by their labelled images, or alike if clipped."""

    def begin(
        self, config: FederatedConfig, common: Mapping[str, str], *, before: int, noise: Noise = lambda _: SYSTEM
    ) -> Rounds:
        """Take the settings, what all sites are told in every message, how many rounds are done already, and what the
        noise of a round is drawn from."""
        self.config, self.common, self.before, self.noise = config, common, before, noise
        self.sites = frozenset(config.sites)
        self.log: list[dict[str, Any]] = []
        """One entry a round: who answered, bytes, seconds, losses and scores."""
        self._began = 0.0
        self._sent = 0
        self._met = False
        self._begun_from = ArrayRecord()
        self._summed: Summed | None = None
        return self

    def summary(self) -> None:
        """Say nothing: the run has its own words."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every site for a round of training; with secure aggregation at once, in its own exchanges."""
        self._began = time.monotonic()
        self._begun_from = arrays
        asked = self._ask(MessageType.TRAIN, server_round, arrays, config, grid)
        if not self.config.privacy.secure_aggregation:
            return asked
        self._summed = exchange(grid, asked, self.config, self._round(server_round))
        return []

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every site how the average does on its validation part; with noise none, as scores have no noise."""
        if self.config.privacy.noise > 0:
            return []
        return self._ask(MessageType.EVALUATE, server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what has come, and add the noise; RunFailed where fewer sites have answered than have to."""
        privacy, what = self.config.privacy, self._round(server_round)
        averaged, sites = self._averaged() if privacy.secure_aggregation else self._average(replies, what)
        if privacy.clip is not None and privacy.noise > 0:
            deviation = compute_stdv(privacy.noise, privacy.clip, len(sites))
            averaged = as_arrays(noisy(as_tensors(averaged), deviation, self.noise(self.before + server_round)))
        entry = {"round": self.before + server_round, "seconds": round(time.monotonic() - self._began, 2)}
        self.log.append({**entry, "sites": sites})
        return averaged, None

    def _average(self, replies: Iterable[Message], what: str) -> tuple[ArrayRecord, dict[str, Any]]:
        found = self.open(replies, what)
        expected = {name: tuple(array.shape) for name, array in self._begun_from.items()}
        if odd := [one.site for one in found if _shapes(one) != expected]:
            warn(f"{', '.join(odd)} sent tensors of other names or shapes, and is left out of the round")
        taken = [one for one in found if _shapes(one) == expected]
        self.require_enough(taken, what)
        alike = self.config.privacy.clip is not None
        averaged = aggregate_arrayrecords(
            [_as_content(one, 1 if alike else one.numbers[WEIGHT]) for one in taken], WEIGHT
        )
        return _like(averaged, taken[0].arrays), {
            one.site: {"down": self._sent, "up": one.bytes, **one.numbers} for one in taken
        }

    def _averaged(self) -> tuple[ArrayRecord, dict[str, Any]]:
        """Return what secure aggregation has found."""
        begun = as_tensors(self._begun_from)
        assert self._summed is not None
        mean = dict(zip(sorted(begun), self._summed.mean, strict=True))
        averaged = {
            name: (begun[name].double() + _tensor(mean[name]).reshape(begun[name].shape)).to(begun[name].dtype)
            for name in begun
        }
        return as_arrays(averaged), {name: dict(one) for name, one in self._summed.sites.items()}

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Write down the mean validation score, weighted by images; none where a site has no validation part."""
        entry = self.log[-1]
        if self.config.privacy.noise > 0:
            entry["score"] = None
            return None
        found = self.open(replies, f"{self._round(server_round)}, validation")
        for one in found:
            known = entry["sites"].setdefault(one.site, {"down": 0, "up": 0})
            if not math.isnan(score := one.numbers.get("score", math.nan)):
                known["score"] = score
            known["down"], known["up"] = known["down"] + self._sent, known["up"] + one.bytes
        weights = [one.numbers[WEIGHT] for one in found]
        scores = [one.numbers.get("score", math.nan) for one in found]
        mean = float(np.average(scores, weights=weights)) if found else math.nan
        entry["score"] = None if math.isnan(mean) else round(mean, 6)
        entry["seconds"] = round(time.monotonic() - self._began, 2)
        return None

    def _round(self, server_round: int) -> str:
        return f"round {self.before + server_round}"

    def _ask(
        self, kind: str, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        config[ROUND] = self.before + server_round
        for name, value in self.common.items():
            config[name] = value
        record = RecordDict({ARRAYS: arrays, CONFIG: config})
        self._sent = size(record)
        return [Message(record, dst_node_id=node, message_type=kind) for node in self.nodes(grid)]

    def nodes(self, grid: Grid) -> list[int]:
        """Return the nodes that are connected, waiting as long as a round may wait for an answer.

        At first for all sites; later, so that one that is gone does not hold up every round, for those that have to be.
        """
        wanted = self.config.min_sites if self._met else len(self.sites)
        until = time.monotonic() + self.config.timeout
        while len(found := sorted(grid.get_node_ids())) < wanted and time.monotonic() < until:
            time.sleep(WAIT)
        self._met = True
        return found

    def open(self, replies: Iterable[Message], what: str, *, also: frozenset[str] = frozenset()) -> list[Reply]:
        """Return the sound replies in the order of the sites' names, and say who is missing; ``also``: numbers that
        they may hold beside."""
        found: dict[str, Reply] = {}
        for message in replies:
            if message.has_error():
                continue
            try:
                one = opened(message, sites=self.sites, also=also)
            except UserError as error:
                warn(f"{what}: {error}; it is left out")
                continue
            if found.setdefault(one.site, one) is not one:
                raise RunFailed(f"{what}: two nodes answer as site {one.site}. Give each site one node.")
        if absent := sorted(self.sites - found.keys()):
            warn(f"{what}: no answer of {', '.join(absent)}; it goes on without")
        return [found[name] for name in sorted(found)]

    def require_enough(self, found: list[Reply], what: str) -> None:
        """Raise RunFailed where fewer sites have answered than have to."""
        if len(found) < self.config.min_sites:
            raise RunFailed(
                f"{what}: {len(found)} of {len(self.sites)} sites answered, and federated.min_sites is "
                f"{self.config.min_sites}. The rounds before are kept: start it again when the sites are there."
            )


class Proximal(FedProx, Rounds):
    """FedProx: sites are told the weight of the term that keeps them near to what the round began with."""


def build_rounds(
    config: FederatedConfig, common: Mapping[str, str], *, before: int, noise: Noise = lambda _: SYSTEM
) -> Rounds:
    """Return the strategy of the settings, to go on after so many rounds."""
    strategy = Proximal(proximal_mu=config.proximal) if config.strategy == "fedprox" else Rounds()
    return strategy.begin(config, common, before=before, noise=noise)


def _shapes(one: Reply) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in one.arrays.items()}


def _as_content(one: Reply, weight: float) -> RecordDict:
    tensors = {name: _tensor(array) for name, array in one.arrays.items()}
    return RecordDict({ARRAYS: as_arrays(tensors), METRICS: MetricRecord({WEIGHT: weight})})


def _like(averaged: ArrayRecord, sent: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Return averages in the types that were sent: numpy's sums of float32 and Python's floats keep it, halves too."""
    return as_arrays({n: _tensor(array.numpy().astype(sent[n].dtype)) for n, array in averaged.items()})


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))
