"""What is sent, and nothing else: named tensors or answers, a few numbers, and the name of the site.

A reply is made and opened here alone, by a list of what it may hold: no image, file name, path or count of a case has a
place in it. An error is told by one fixed sentence; what went wrong stays in the site's own log.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_to_proto

from tskd.errors import UserError
from tskd.federated.shared import Tensors
from tskd.federated.site import STUDENT, TEACHER, Numbers, Task

logging.getLogger("flwr").setLevel(logging.CRITICAL)  # the run has its own words; Flower's name tensors and scores

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
"""Names of the records of a message."""
ROUND, FEDERATION, TERMS, PROXIMAL, SITE = "server-round", "federation", "terms", "proximal-mu", "site"
NUMBERS = frozenset({"images", "loss", "score"})
"""All that a site may tell in numbers: labelled images in all, the last loss, the score on its validation part."""
COUNTS = ("n_cases", "scored", "missed", "false_positive", "both_empty")
SHARES = ("dice", "low", "high", "iou")
VOLUMES = "volumes"
"""1: the cases are volumes, 0: images."""
SCORES = frozenset(f"{model}-{name}" for model in (TEACHER, STUDENT) for name in (*SHARES, *COUNTS, VOLUMES))
"""What it may tell beside that once it has the result: means and totals over its test images."""
WEIGHT = "images"
ANSWERS = "answers"
"""Action of the message that asks for answers on the shared images (``train.answers``), and its array."""
RESULT = "result"
"""Action of the message that brings what was learned (``evaluate.result``)."""
SAID_OF_ERRORS = "The site could not do its part; its own log says why."


@dataclass(frozen=True)
class Reply:
    """What a site has sent."""

    site: str
    arrays: Mapping[str, np.ndarray]
    numbers: Numbers
    bytes: int


def as_arrays(tensors: Tensors) -> ArrayRecord:
    """Return tensors as Flower sends them: numpy's own format, which holds no code."""
    return ArrayRecord({name: Array(tensors[name].detach().cpu().numpy()) for name in sorted(tensors)})


def as_tensors(arrays: ArrayRecord) -> dict[str, torch.Tensor]:
    """Return what :func:`as_arrays` made a record of."""
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in arrays.items()}


def task_of(message: Message) -> tuple[Task, str]:
    """Return what a message asks for, and the terms that it is asked under."""
    config: Any = message.content[CONFIG]
    task = Task(str(config[FEDERATION]), int(config[ROUND]), float(config.get(PROXIMAL, 0.0)))
    return task, str(config[TERMS])


def reply(message: Message, site: str, arrays: ArrayRecord | None, numbers: Numbers) -> Message:
    """Return a site's answer to a message; AssertionError for a number that has no leave to go."""
    leave = NUMBERS | SCORES
    assert numbers.keys() <= leave, f"{sorted(numbers.keys() - leave)} may not leave a site"
    records: dict[str, Any] = {METRICS: MetricRecord(dict(numbers)), CONFIG: ConfigRecord({SITE: site})}
    if arrays is not None:
        records[ARRAYS] = arrays
    return Message(RecordDict(records), reply_to=message)


def failed(message: Message) -> Message:
    """Return a site's answer where it could not do its part; it says no more than that."""
    return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=SAID_OF_ERRORS), reply_to=message)


def size(content: RecordDict) -> int:
    """Return the bytes of a message's content as it is serialised; a transport adds its own frames."""
    return int(recorddict_to_proto(content).ByteSize())


def opened(message: Message, *, sites: frozenset[str], also: frozenset[str] = frozenset()) -> Reply:
    """Return what a reply holds; UserError where it is not what a site of this federation may send.

    ``also``: numbers that this reply may hold beside those of every reply.
    """
    content = message.content
    if set(content) - {ARRAYS, CONFIG, METRICS} or not {CONFIG, METRICS} <= set(content):
        raise UserError(f"a reply with the records {', '.join(sorted(content))}, which no site sends")
    site, numbers = numbers_of(content, sites=sites, also=also)
    arrays: Any = content.get(ARRAYS, {})
    found = {name: array.numpy() for name, array in arrays.items()}
    if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in found.values()):
        raise UserError(f"site {site}: a reply with values that are not finite")
    return Reply(site, found, numbers, size(content))


def numbers_of(
    content: RecordDict, *, sites: frozenset[str], also: frozenset[str] = frozenset()
) -> tuple[str, Numbers]:
    """Return who has sent a reply and what it tells in numbers; UserError for any other than a site may tell."""
    config: Any = content[CONFIG]
    metrics: Any = content[METRICS]
    if set(config) != {SITE} or config[SITE] not in sites:
        raise UserError("a reply of a site that the recipe does not name")
    if set(metrics) - NUMBERS - also or not all(isinstance(one, int | float) for one in metrics.values()):
        raise UserError(f"site {config[SITE]}: a reply with numbers that no site sends")
    if not metrics.get(WEIGHT, 0) > 0 or not math.isfinite(metrics[WEIGHT]):
        raise UserError(f"site {config[SITE]}: a reply without the number of images that it weighs")
    return config[SITE], {name: float(value) for name, value in metrics.items()}
