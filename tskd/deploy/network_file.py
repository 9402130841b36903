"""The network of a bundle as an ONNX file: opened only where it is whole, stands alone and answers as a bundle does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tskd.errors import UserError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, RunOptions

INPUT, CLASSES, PROBABILITIES = "image", "classes", "probabilities"
_DOMAINS = frozenset({"", "ai.onnx"})
"""Of operators: the standard ones. Others may be anyone's code, or are not there on another machine."""
_REMEDY = "Export the model again with `tskd export`, or copy the bundle again from its source."


class Answer(NamedTuple):
    """What the exported network says about one image."""

    classes: np.ndarray
    """(H, W) uint8 class index, 0 background."""
    probabilities: np.ndarray
    """(K + 1, H, W) float32, background first."""


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
    try:
        answer = Answer(*session.run([CLASSES, PROBABILITIES], {INPUT: image}, options))
    except Exception as error:
        what = f"the bundle's network fails on an image of {width}x{height} pixels ({_first_line(error)})"
        raise UserError(f"{what}. {_REMEDY}") from error
    labels, known = answer.classes, len(answer.probabilities)
    if labels.shape != (height, width) or answer.probabilities.shape[1:] != (height, width):
        shapes = f"{labels.shape} and {answer.probabilities.shape}"
        raise UserError(f"the bundle's network answers {shapes} for an image of {width}x{height} pixels. {_REMEDY}")
    if labels.size and labels.max() >= known:
        raise UserError(f"the bundle's network answers class {labels.max()} and knows {known - 1} classes. {_REMEDY}")
    return answer


def _require_alone(path: Path) -> None:
    """Raise UserError where a file is not an ONNX, or names data outside it, which no list of digests covers."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise _unusable(path, "it cannot be read as ONNX") from error
    graphs = list(_graphs([model.graph]))
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for graph in graphs for tensor in _tensors(graph)):
        raise _unusable(path, "its weights are in another file, which a bundle does not have")
    own = {function.domain for function in model.functions}
    foreign = {node.domain for graph in graphs for node in graph.node} - _DOMAINS - own
    if foreign or any(node.domain not in _DOMAINS | own for function in model.functions for node in function.node):
        raise _unusable(path, "it has operators that are not ONNX's own")


def _graphs(graphs: Iterable[Any]) -> Iterator[Any]:
    """Yield graphs and those inside their nodes; protobuf bounds how deep they nest."""
    for graph in graphs:
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                yield from _graphs([attribute.g] if attribute.HasField("g") else attribute.graphs)


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)


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


def _fits(shape: list[Any], wanted: tuple[int | None, ...]) -> bool:
    """Say whether a shape has these sides; None: one that is free."""
    return len(shape) == len(wanted) and all(
        not isinstance(side, int) if want is None else side == want for side, want in zip(shape, wanted)
    )


def _unusable(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not a network that tskd exported: {why}. {_REMEDY}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
