"""The network of a bundle as an ONNX file: opened only where it is whole, stands alone and answers as a bundle does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tskd.errors import UserError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, RunOptions

INPUT, CLASSES, PROBABILITIES = "image", "classes", "probabilities"
CONFIDENCE, UNFAMILIARITY = "confidence", "unfamiliarity"
"""Outputs that bundles of before do not have; the second also not where a network offers no features."""
_DOMAINS = frozenset({"", "ai.onnx"})
"""Of operators: the standard ones. Others may be anyone's code, or are not there on another machine."""
_LARGEST = 2 * 10**9
"""Bytes: protobuf, and so ONNX, takes no more."""
_MOST_CELLS = 10**9
"""Numbers in an array that does not depend on the image: weights of a clinic's model are a hundredth of it."""
_MOST_SIDES = 16
_SHAPED = frozenset({"ConstantOfShape", "Expand", "Tile"})
"""Operators that make an array of a size which another input states."""
_REMEDY = "Export the model again with `tskd export`, or copy the bundle again from its source."


class Answer(NamedTuple):
    """What the exported network says about one image."""

    classes: np.ndarray
    """(H, W) uint8 class index, 0 background."""
    probabilities: np.ndarray
    """(K + 1, H, W) float32, background first."""
    confidence: float
    """Mean probability of the answered class over the pixels of the mask; over the whole image where it is empty."""
    unfamiliarity: float | None = None
    """Distance of the image from the training images; above 1 it lies further out than 95 % of images like them."""


def open_session(path: Path, threads: int | None = None, *, classes: int | None = None) -> InferenceSession:
    """Open an ONNX file on the CPU; ``threads`` None: as many as onnxruntime chooses.

    Raises UserError where it cannot be loaded, needs other files or operators that are not ONNX's own, or does not take
    an image of any size and answer ``classes`` foreground classes (None: however many) at that size.
    """
    _require_alone(path)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # what it says of a file that is none is in the error
    options.enable_cpu_mem_arena = False  # it would double what a large image needs, and keep it
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _unusable(path, f"onnxruntime cannot load it ({_first_line(error)})") from error
    _require_interface(path, session, classes)
    return session


def ask(session: InferenceSession, image: np.ndarray, options: RunOptions | None = None) -> Answer:
    """Return the answer for one image (H, W, 3) uint8 RGB; UserError where it is none for this image.

    Setting ``options.terminate`` in another thread ends the work, with a UserError too.
    """
    height, width = image.shape[:2]
    known_outputs = [one.name for one in session.get_outputs()]
    doubts = [name for name in (CONFIDENCE, UNFAMILIARITY) if name in known_outputs]
    try:
        labels, probabilities, *told = session.run([CLASSES, PROBABILITIES, *doubts], {INPUT: image}, options)
    except Exception as error:
        what = f"the bundle's network fails on an image of {width}x{height} pixels ({_first_line(error)})"
        raise UserError(f"{what}. {_REMEDY}") from error
    numbers = {name: float(value) for name, value in zip(doubts, told)}
    answer = Answer(labels, probabilities, **{CONFIDENCE: 0.0, **numbers})
    known = len(answer.probabilities)
    if labels.shape != (height, width) or answer.probabilities.shape[1:] != (height, width):
        shapes = f"{labels.shape} and {answer.probabilities.shape}"
        raise UserError(f"the bundle's network answers {shapes} for an image of {width}x{height} pixels. {_REMEDY}")
    if labels.size and labels.max() >= known:
        raise UserError(f"the bundle's network answers class {labels.max()} and knows {known - 1} classes. {_REMEDY}")
    if CONFIDENCE not in numbers:
        answer = answer._replace(confidence=confidence(labels, probabilities))
    if math.isnan(answer.confidence):
        raise UserError(f"the bundle's network answers no numbers for an image of {width}x{height} pixels. {_REMEDY}")
    return answer


def confidence(classes: np.ndarray, probabilities: np.ndarray) -> float:
    """Return what newer files answer themselves, from an answer's (H, W) and (K + 1, H, W)."""
    sure, found = probabilities.max(axis=0), classes > 0
    return float(sure[found].mean() if found.any() else sure.mean()) if sure.size else 0.0


def _require_alone(path: Path) -> None:
    """Raise UserError where a file is not an ONNX, or names data outside it, which no list of digests covers."""
    from google.protobuf.message import DecodeError

    from tskd.deploy.onnx_schema import EXTERNAL, parse

    if path.stat().st_size > _LARGEST:
        raise _unusable(path, f"it is larger than {_LARGEST // 10**9} GB, which no ONNX file is")
    try:
        model = parse(path.read_bytes())
    except DecodeError as error:
        raise _unusable(path, "it cannot be read as ONNX") from error
    functions = [node for function in model.functions for node in function.node]
    graphs = list(_graphs([model.graph], functions))
    tensors = [tensor for graph in graphs for tensor in _tensors(graph)] + list(_node_tensors(functions))
    if any(tensor.data_location == EXTERNAL or tensor.external_data for tensor in tensors):
        raise _unusable(path, "its weights are in another file, which a bundle does not have")
    if any(_cells(tensor) > _MOST_CELLS for tensor in tensors):
        raise _unusable(path, "it states an array that could not be in it")
    if _asks_for_too_much([*model.graph.node, *functions], tensors):
        raise _unusable(path, f"it makes an array of more than {_MOST_CELLS:.0e} numbers whatever the image")
    own = {function.domain for function in model.functions}
    foreign = {node.domain for graph in graphs for node in graph.node} - _DOMAINS - own
    if foreign or any(node.domain not in _DOMAINS | own for function in model.functions for node in function.node):
        raise _unusable(path, "it has operators that are not ONNX's own")


def _graphs(graphs: Iterable[Any], nodes: Iterable[Any] = ()) -> Iterator[Any]:
    """Yield graphs and those inside their nodes and in ``nodes``; protobuf bounds how deep they nest."""
    for graph in graphs:
        yield graph
        yield from _graphs([], graph.node)
    for node in nodes:
        for attribute in node.attribute:
            yield from _graphs([*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs])


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def _cells(tensor: Any) -> int:
    return math.prod(max(side, 0) for side in tensor.dims)


def _asks_for_too_much(nodes: Iterable[Any], tensors: Iterable[Any]) -> bool:
    """Say whether a constant shape makes an array that large: onnxruntime makes it when it opens the file."""
    shapes = {tensor.name: _integers(tensor) for tensor in tensors if len(tensor.dims) == 1 and tensor.name}
    shapes |= {
        out: _integers(attribute.t) or tuple(one for one in attribute.ints if one > 0)
        for node in nodes
        if node.op_type == "Constant"
        for out in node.output
        for attribute in node.attribute
    }
    asked = (name for node in nodes if node.op_type in _SHAPED for name in node.input)
    return any(math.prod(shapes.get(name, ())) > _MOST_CELLS for name in asked)


def _integers(tensor: Any) -> tuple[int, ...]:
    """Return the positive integers of a constant, as far as it holds integers of 64 bits."""
    from tskd.deploy.onnx_schema import INT64

    if tensor.data_type != INT64 or _cells(tensor) > _MOST_SIDES:
        return ()
    stored = tensor.int64_data or np.frombuffer(tensor.raw_data[: len(tensor.raw_data) // 8 * 8], "<i8").tolist()
    return tuple(one for one in stored if one > 0)


def _require_interface(path: Path, session: InferenceSession, classes: int | None) -> None:
    inputs = {one.name: (one.type, one.shape) for one in session.get_inputs()}
    outputs = {one.name: (one.type, one.shape) for one in session.get_outputs()}
    kind, shape = inputs.get(INPUT, ("", []))
    if inputs.keys() != {INPUT} or kind != "tensor(uint8)" or not _fits(shape, (None, None, 3)):
        raise _unusable(path, f"its input is not one {INPUT} of (height, width, 3) bytes of any size")
    kind, shape = outputs.get(CLASSES, ("", []))
    if kind != "tensor(uint8)" or not _fits(shape, (None, None)):
        raise _unusable(path, f"its output {CLASSES} is not of (height, width) bytes")
    kind, shape = outputs.get(PROBABILITIES, ("", []))
    wanted = shape[0] if classes is None and shape else (classes or 0) + 1
    if kind != "tensor(float)" or not _fits(shape, (wanted, None, None)):
        named = "" if classes is None else f" for the {classes} classes of the bundle and the background"
        raise _unusable(path, f"its output {PROBABILITIES} is not of (K + 1, height, width) numbers{named}")
    for name in (CONFIDENCE, UNFAMILIARITY):
        if outputs.get(name, ("tensor(float)", [])) != ("tensor(float)", []):
            raise _unusable(path, f"its output {name} is not one number")


def _fits(shape: list[Any], wanted: tuple[int | None, ...]) -> bool:
    """Say whether a shape has these sides; None: one that is free."""
    return len(shape) == len(wanted) and all(
        not isinstance(side, int) if want is None else side == want for side, want in zip(shape, wanted)
    )


def _unusable(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not a network that tskd exported: {why}. {_REMEDY}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
