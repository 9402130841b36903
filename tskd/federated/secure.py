"""Secure aggregation: the server learns the weighted mean of the sites' updates and no single one (Flower's SecAgg+).

Flower 1.42 has the protocol (Bell et al. 2020, eprint.iacr.org/2020/704) for its older strategies alone:
``SecAggPlusWorkflow`` on the server and ``secaggplus_mod`` at the sites. This is the bridge to the newer ServerApp and
ClientApp: four exchanges of messages a round in the place of one. Keys, shares, masks and sums are Flower's, with these
differences, each of which has a test:

- Masks are drawn by SHAKE-256 from the whole key. Flower folds a key to 32 bits (28 that vary, of a key in base64) and
  seeds a Mersenne twister with them, so that a server could try them all.
- A site that falls silent before it has given away shares of its key is forgotten; Flower would ask for the shares.
- A site takes no part under weaker terms than its own: fewer shares than sites, a threshold that no majority reaches,
  another ring of numbers, or a request to unmask a site's own mask and its key at once.
- Single numbers go as lists of one: of an array without sides Flower would not take the offset off again.
- Updates go, not tensors, as multiples of 2**-29 of the range: the clipping norm, or ``RANGE`` without one.

It holds against a server that follows the protocol and is curious, and up to a minority of sites that help it. It does
not hold against a server that invents sites: public keys pass through it and nobody vouches for them.
"""

from __future__ import annotations

import hashlib
import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common import bytes_to_ndarray, ndarray_to_bytes, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE, Key, Stage
from flwr.common.typing import Code, FitIns, FitRes, Parameters, Status
from flwr.compat.common.recorddict_compat import fitres_to_recorddict
from flwr.serverapp import Grid

from tskd.console import warn
from tskd.errors import Paused, RunFailed, UserError
from tskd.federated.messages import ARRAYS, CONFIG, METRICS, SITE, WEIGHT, failed, numbers_of, size
from tskd.federated.shared import Tensors
from tskd.federated.site import Numbers, Site
from tskd.recipe.schema import FederatedConfig

RANGE = 8.0
"""Largest change of a number in a round that can be sent where ``privacy.clip`` states none."""
STEPS = 2**30
"""Steps of the numbers that are masked, from minus the range to plus it: a step is 2**-29 of the range."""
MODULUS = 2**40
"""Of the ring that masks and sums are in: room for 1023 sites."""
HEAVIEST = "heaviest"
"""Number of images that weighs 1."""
MASKED = "masked"
"""Record of a masked update, each tensor an array: of Flower's, one piece holds all, which no port should take."""
LEGACY = ("fitres.parameters", "fitres.num_examples", "fitres.metrics", "fitres.status")
"""Records that Flower's protocol has beside ours in the reply with the masked update; the first is emptied."""
_SETUP = {Key.CLIPPING_RANGE: 1.0, Key.TARGET_RANGE: STEPS, Key.MOD_RANGE: MODULUS, Key.MAX_WEIGHT: 1.0}
_KEYS = {
    Stage.SETUP: {Key.PUBLIC_KEY_1, Key.PUBLIC_KEY_2},
    Stage.SHARE_KEYS: {Key.DESTINATION_LIST, Key.CIPHERTEXT_LIST},
    Stage.COLLECT_MASKED_VECTORS: set(),
    Stage.UNMASK: {Key.NODE_ID_LIST, Key.SHARE_LIST},
}
"""What a site says in each stage."""
_RECORDS = {
    Stage.SETUP: {CONFIG, METRICS},
    Stage.SHARE_KEYS: set(),
    Stage.COLLECT_MASKED_VECTORS: {CONFIG, METRICS, MASKED, *LEGACY},
    Stage.UNMASK: set(),
}
"""Records of a stage's reply beside that."""


def masks(seed: bytes, modulus: int, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Return pseudorandom int64 numbers below a modulus that is a power of 2, from all bits of the seed."""
    counts = [math.prod(shape) for shape in shapes]
    stream = np.frombuffer(hashlib.shake_256(seed).digest(8 * sum(counts)), np.uint64) & np.uint64(modulus - 1)
    parts = np.split(stream.astype(np.int64), np.cumsum(counts)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


_at_site: Any = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
_at_server: Any = import_module("flwr.server.workflow.secure_aggregation.secaggplus_workflow")
_at_site.pseudo_rand_gen = _at_server.pseudo_rand_gen = masks  # both sides have to draw the same


# --- at a site ---

Answer = Callable[[Message, Context], Message]


def securing(open_site: Callable[[Context], Site]) -> Callable[[Message, Context, Answer], Message]:
    """Return Flower's mod for secure aggregation, which leaves messages that are no part of it alone."""

    def secured(message: Message, context: Context, answer: Answer) -> Message:
        if not is_secure(message):
            return answer(message, context)
        try:
            asked: Any = message.content[RECORD_KEY_CONFIGS]
            stage, site = asked.get(Key.STAGE), open_site(context)
            _require_own_terms(asked, site, context)
            reply: Message = _at_site.secaggplus_mod(message, context, _or_stop(answer))
            if stage == Stage.SETUP:
                reply.content[METRICS] = MetricRecord({WEIGHT: site.weight})
                reply.content[CONFIG] = ConfigRecord({SITE: site.name})
            if stage == Stage.COLLECT_MASKED_VECTORS:
                said: Any = reply.content[RECORD_KEY_CONFIGS]
                reply.content[MASKED] = _as_record(said.pop(Key.MASKED_PARAMETERS))
        except Paused:
            raise
        except _Stopped:
            return failed(message)
        except UserError as error:
            warn(str(error))
            return failed(message)
        except Exception:  # noqa: BLE001 what a server of another mind sends: it is told here alone
            traceback.print_exc()
            return failed(message)
        return reply

    return secured


def is_secure(message: Message) -> bool:
    """Return whether a message is part of a secure aggregation."""
    return RECORD_KEY_CONFIGS in message.content


def update_to_mask(
    message: Message, site: Site, learned: Tensors, received: Tensors, numbers: Numbers, *, seed: int
) -> Message:
    """Return what Flower's mod makes a masked update of; UserError where it is larger than can be sent.

    The seed decides the rounding, which is random (to keep its mean) and nothing to hide.
    """
    config: Any = message.content[CONFIG]
    share = site.weight / float(config[HEAVIEST])
    if not 0 < share <= 1:
        raise UserError(f"site {site.name}: the server weighs this site's images with {share:g}; nothing was sent.")
    update = [(learned[name].double() - received[name].double()).flatten().numpy() for name in sorted(learned)]
    bound = site.privacy.clip
    range_ = bound or RANGE
    if bound is None and (largest := max(float(np.abs(one).max(initial=0)) for one in update)) > range_:
        raise UserError(
            f"site {site.name}: a number of the teacher has changed by {largest:g} in this round, and secure "
            f"aggregation sends at most {RANGE:g}. Set federated.privacy.clip."
        )
    scaled = ndarrays_to_parameters([one / range_ for one in update])
    content = fitres_to_recorddict(FitRes(Status(Code.OK, ""), scaled, share, {}), False)  # type: ignore[arg-type]
    content[METRICS], content[CONFIG] = MetricRecord(dict(numbers)), ConfigRecord({SITE: site.name})
    np.random.seed(seed % 2**32)  # noqa: NPY002 Flower's rounding draws from it next
    return Message(content, reply_to=message)


class _Stopped(Exception):
    """The site could not do its part, and has said why in its own log."""


def _or_stop(answer: Answer) -> Answer:
    def answered(message: Message, context: Context) -> Message:
        reply = answer(message, context)
        if reply.has_error():
            raise _Stopped
        return reply

    return answered


def _as_record(arrays: Sequence[bytes]) -> ArrayRecord:
    """Return masked arrays as a record, in their order: the network carries its parts one by one."""
    return ArrayRecord({f"{place:06d}": Array(bytes_to_ndarray(one)) for place, one in enumerate(arrays)})


def _require_own_terms(asked: Mapping[str, Any], site: Site, context: Context) -> None:
    """Raise UserError where the server asks for what the site's recipe does not say, for what would let it read a
    single update, or for what keys are needed that are gone."""
    stage = asked.get(Key.STAGE)
    if not site.privacy.secure_aggregation:
        raise UserError(f"site {site.name}: the server asks for a secure aggregation, the recipe does not; no answer.")
    if stage == Stage.SETUP:
        sites, threshold = asked[Key.SAMPLE_NUMBER], asked[Key.THRESHOLD]
        alike = all(asked[key] == value for key, value in _SETUP.items())
        if not alike or asked[Key.SHARE_NUMBER] != sites or threshold < threshold_of(sites, 2):
            raise UserError("The server asks for a secure aggregation under weaker terms; nothing was sent.")
    if stage == Stage.UNMASK and set(asked[Key.ACTIVE_NODE_ID_LIST]) & set(asked[Key.DEAD_NODE_ID_LIST]):
        raise UserError("The server asks for both secrets of one site, which would unmask it; nothing was sent.")
    if stage != Stage.SETUP and RECORD_KEY_STATE not in context.state:
        raise UserError(
            f"site {site.name}: it was started anew within a masked round, whose keys are gone with the process; it "
            "takes part again in the next."
        )


def threshold_of(sites: int, min_sites: int) -> int:
    """Return how many sites have to answer to the end: a majority, so that no two groups can each unmask something."""
    return max(min_sites, sites // 2 + 1, 2)


# --- on the server ---


@dataclass(frozen=True)
class Summed:
    """What the server knows after a round."""

    mean: list[np.ndarray]
    """The weighted mean of the updates, float64 and flat, by the tensors' names in order."""
    sites: Mapping[str, Mapping[str, float]]
    """Of each site in it the bytes ``down`` and ``up``, and what it tells in numbers."""


def exchange(grid: Grid, asked: Sequence[Message], config: FederatedConfig, what: str) -> Summed:
    """Ask for a round of training by the four exchanges; RunFailed where too few sites answer to the end."""
    contents: Any = {message.metadata.dst_node_id: message.content for message in asked}
    shapes = [(math.prod(array.shape),) for _, array in sorted(next(iter(contents.values()))[ARRAYS].items())]
    line = Line(grid, frozenset(config.sites), shapes, what)
    needed = threshold_of(len(asked), config.min_sites)
    workflow = _at_server.SecAggPlusWorkflow(
        1.0, needed, max_weight=1.0, clipping_range=1.0, quantization_range=STEPS, modulus_range=MODULUS,
        timeout=config.timeout,
    )  # fmt: skip
    summed: list[Parameters] = []
    context, state = _legacy([*contents], summed), _at_server.WorkflowState()
    stages = workflow.setup_stage, workflow.share_keys_stage, workflow.collect_masked_vectors_stage
    for number, stage in enumerate((*stages, workflow.unmask_stage)):
        try:
            sound = stage(line, context, state)
        except (KeyError, IndexError, TypeError, ValueError) as error:  # Flower believes what sites say
            raise RunFailed(f"{what}: a site has sent what no secure aggregation can go on with ({error!r})") from error
        if not sound:
            raise RunFailed(
                f"{what}: {len(state.active_node_ids)} of {len(config.sites)} sites answered, and secure aggregation "
                f"needs {needed} of {len(asked)} that began. Start it again when the sites are there."
            )
        if number < 2:
            _forget_silent(state)
        if number == 0:
            heaviest = max(line.told[node][1][WEIGHT] for node in state.active_node_ids)
            state.nid_to_fitins = {node: _with(contents[node], heaviest) for node in state.active_node_ids}
    if absent := sorted(frozenset(config.sites) - line.taken.keys()):
        warn(f"{what}: no answer of {', '.join(absent)}; it goes on without")
    range_ = config.privacy.clip or RANGE
    return Summed([array * range_ for array in parameters_to_ndarrays(summed[0])], line.sites)


def _legacy(nodes: Sequence[int], summed: list[Parameters]) -> Any:
    """Return what Flower's stages ask of the older API: the round, the nodes, and who takes the sum."""

    def take(server_round: int, results: Any, failures: Any) -> tuple[None, dict[str, Any]]:
        summed.append(results[0][1].parameters)
        return None, {}

    nothing = FitIns(Parameters([], "numpy.ndarray"), {})
    asked = [(SimpleNamespace(node_id=node), nothing) for node in nodes]
    main = {_at_server.MAIN_CONFIGS_RECORD: ConfigRecord({"current_round": 1})}
    return SimpleNamespace(
        state=RecordDict({**main, _at_server.MAIN_PARAMS_RECORD: ArrayRecord()}),
        strategy=SimpleNamespace(configure_fit=lambda *_: asked, aggregate_fit=take),
        client_manager=SimpleNamespace(num_available=lambda: len(nodes)),
    )


def _with(content: RecordDict, heaviest: float) -> RecordDict:
    """Return a node's own copy of what it is asked, which the stage puts its part into."""
    config: Any = content[CONFIG]
    return RecordDict({ARRAYS: content[ARRAYS], CONFIG: ConfigRecord({**config, HEAVIEST: heaviest})})


def _forget_silent(state: Any) -> None:
    """Go on as if those had never been there that have given no shares of their keys: nothing can be asked of them."""
    state.sampled_node_ids = set(state.active_node_ids)
    state.nid_to_neighbours = {
        node: state.nid_to_neighbours[node] & state.active_node_ids for node in state.active_node_ids
    }


@dataclass
class Line:
    """The grid as Flower's stages use it: replies that no site of ours sends do not pass, and bytes are counted."""

    grid: Grid
    names: frozenset[str]
    shapes: Sequence[tuple[int, ...]]
    what: str
    told: dict[int, tuple[str, Numbers]] = field(default_factory=dict)
    """Name and numbers of each node, as it last told them."""
    taken: dict[str, int] = field(default_factory=dict)
    """Sites whose masked update is in the sum, and their nodes."""
    counted: dict[int, dict[str, int]] = field(default_factory=dict)
    """Node -> the bytes ``down`` to it and ``up`` from it."""

    @property
    def sites(self) -> dict[str, dict[str, float]]:
        """Return what is written down of each site in the sum."""
        return {name: {**self.counted[node], **self.told[node][1]} for name, node in sorted(self.taken.items())}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the sound replies; all messages are of one stage."""
        sent = list(messages)
        config: Any = sent[0].content[RECORD_KEY_CONFIGS]
        stage = str(config[Key.STAGE])
        for message in sent:
            self._count(message.metadata.dst_node_id, "down", message)
        replies = self.grid.send_and_receive(sent, timeout=timeout)
        return [reply for reply in replies if not reply.has_error() and self._sound(reply, stage)]

    def _sound(self, reply: Message, stage: str) -> bool:
        try:
            self._take(reply, stage)
        except (UserError, ValueError, TypeError) as error:
            warn(f"{self.what}: {error}; it is left out")
            return False
        return True

    def _take(self, reply: Message, stage: str) -> None:
        node, content = reply.metadata.src_node_id, reply.content
        said: Any = content.get(RECORD_KEY_CONFIGS, {})
        if set(content) != {RECORD_KEY_CONFIGS, *_RECORDS[stage]} or set(said) != _KEYS[stage]:
            raise UserError("a reply that is no part of a secure aggregation")
        if any(len(record) for name, record in content.array_records.items() if name != MASKED):
            raise UserError("a reply with tensors that are not masked")
        if stage in (Stage.SETUP, Stage.COLLECT_MASKED_VECTORS):
            self.told[node] = numbers_of(content, sites=self.names)
        self._count(node, "up", reply)
        if stage == Stage.COLLECT_MASKED_VECTORS:
            masked = self._masked(content, self.told[node][0], node)
            content[RECORD_KEY_CONFIGS] = ConfigRecord({Key.MASKED_PARAMETERS: masked})  # equal records are one object

    def _masked(self, content: RecordDict, name: str, node: int) -> list[bytes]:
        """Return a masked update as Flower's stage takes it."""
        arrays = [one.numpy() for one in content.array_records[MASKED].values()]
        if [(one.shape, one.dtype) for one in arrays] != [(one, np.dtype(np.int64)) for one in ((1,), *self.shapes)]:
            raise UserError(f"site {name}: masked tensors of other shapes")
        if self.taken.setdefault(name, node) != node:
            raise RunFailed(f"{self.what}: two nodes answer as site {name}. Give each site one node.")
        return [ndarray_to_bytes(one) for one in arrays]

    def _count(self, node: int, way: str, message: Message) -> None:
        self.counted.setdefault(node, {"down": 0, "up": 0})[way] += size(message.content)
