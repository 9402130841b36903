"""An ONNX file answers for a bundle only where it is whole, stands alone and says what a bundle's network says."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tskd.deploy.network_file import ask, open_session
from tskd.errors import UserError

IMAGE = np.zeros((5, 7, 3), np.uint8)


def network(
    *,
    sides: tuple[object, object] = ("height", "width"),
    answer: str = "plain",
    input_name: str = "image",
    domain: str = "",
    known: int = 2,
) -> onnx.ModelProto:
    """Build a network of ``known`` planes: class 1 where red is above 127, or an answer that fits no image."""
    level = numpy_helper.from_array(np.array(127, np.uint8), "level")
    red, axis = numpy_helper.from_array(np.array(0), "red"), numpy_helper.from_array(np.array([0]), "axis")
    repeats = numpy_helper.from_array(np.array([known, 1, 1]), "repeats")
    nodes = [
        helper.make_node("Gather", [input_name, "red"], ["plane"], axis=2),
        helper.make_node("Greater", ["plane", "level"], ["bright"]),
        helper.make_node("Cast", ["bright"], ["whole"], to=TensorProto.UINT8),
        helper.make_node("Cast", ["whole"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["number", "axis"], ["one"]),
        helper.make_node("Tile", ["one", "repeats"], ["probabilities"]),
    ]
    constants = [level, red, axis, repeats]
    if answer == "no number":
        constants.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nan"))
        nodes[-2:] = [
            helper.make_node("Add", ["number", "nan"], ["lost"]),
            helper.make_node("Unsqueeze", ["lost", "axis"], ["one"]),
            nodes[-1],
        ]
    if answer in ("plain", "no number"):
        nodes.append(helper.make_node("Identity", ["whole"], ["classes"], domain=domain))
    elif answer == "cut":
        constants += [numpy_helper.from_array(np.array([n]), name) for n, name in ((0, "from"), (3, "to"))]
        nodes.append(helper.make_node("Slice", ["whole", "from", "to"], ["classes"]))
    else:
        constants.append(numpy_helper.from_array(np.array(9, np.uint8), "nine"))
        nodes.append(helper.make_node("Add", ["whole", "nine"], ["classes"]))
    graph = helper.make_graph(
        nodes,
        "made up",
        [helper.make_tensor_value_info(input_name, TensorProto.UINT8, [*sides, 3])],
        [
            helper.make_tensor_value_info("classes", TensorProto.UINT8, ["rows", "columns"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [known, "r", "c"]),
        ],
        constants,
    )
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_a_network_that_fits_answers(tmp_path: Path) -> None:
    image = IMAGE.copy()
    image[2, 3, 0] = 255
    answer = ask(open_session(write(tmp_path / "model.onnx", network()), 1, classes=1), image)
    assert np.argwhere(answer.classes).tolist() == [[2, 3]]
    assert answer.probabilities.shape == (2, 5, 7)


class _Bomb:
    """Ends whoever unpickles it."""

    def __reduce__(self) -> tuple[Callable[[int], object], tuple[int]]:
        return os._exit, (3,)


def put_weights_outside(path: Path) -> None:
    """As ``onnx.save`` does it: the list of digests does not know the second file."""
    (constant, *_) = (model := onnx.load(path)).graph.initializer
    constant.data_location = TensorProto.EXTERNAL
    constant.ClearField("raw_data")
    constant.external_data.add(key="location", value="weights.bin")
    (path.parent / "weights.bin").write_bytes(b"\x00")
    write(path, model)


def hide_weights_in_a_branch(path: Path) -> None:
    model = onnx.load(path)
    hidden = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="../../secret")
    branch = helper.make_graph([helper.make_node("Constant", [], ["x"], value=hidden)], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["bright"], ["y"], then_branch=branch, else_branch=branch))
    write(path, model)


def hide_weights_in_a_sparse_attribute(path: Path) -> None:
    model = onnx.load(path)
    values = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    values.external_data.add(key="location", value="/etc/hostname")
    node = helper.make_node("Constant", [], ["x"])
    node.attribute.append(onnx.AttributeProto(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR))
    node.attribute[0].sparse_tensor.values.CopyFrom(values)
    model.graph.node.append(node)
    write(path, model)


def leave_a_constant_without_its_value(path: Path) -> None:
    model = onnx.load(path)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["sides"]))
    write(path, model)


def ask_for_all_memory(path: Path, kind: str, by_node: bool, *, plain: bool = False) -> None:
    """A file of a few bytes that makes 16 TB when it is opened: onnxruntime folds constants."""
    model = onnx.load(path)
    sides = numpy_helper.from_array(np.array([2**21, 2**21]), "sides")
    if by_node:
        value = {"value_ints": [2**21, 2**21]} if plain else {"value": sides}
        model.graph.node.insert(0, helper.make_node("Constant", [], ["sides"], **value))
    else:
        model.graph.initializer.append(sides)
    given = ["sides"] if kind == "ConstantOfShape" else ["number", "sides"]
    model.graph.node.append(helper.make_node(kind, given, ["huge"]))
    write(path, model)


def state_an_array_that_is_not_there(path: Path) -> None:
    model = onnx.load(path)
    model.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40, 2**40]))
    write(path, model)


def nest(path: Path) -> None:
    """Sub-messages in each other, deeper than protobuf follows."""
    path.write_bytes(b"\x3a\x80\x80\x04" * 5000)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("network"), "cannot be read as ONNX"),
    "empty": (lambda path: path.write_bytes(b""), "cannot load it"),
    "cut": (lambda path: path.write_bytes(network().SerializeToString()[:-30]), "cannot be read as ONNX"),
    "nested": (nest, "cannot be read as ONNX"),
    "external": (put_weights_outside, "its weights are in another file"),
    "external in a branch": (hide_weights_in_a_branch, "its weights are in another file"),
    "external in a sparse attribute": (hide_weights_in_a_sparse_attribute, "its weights are in another file"),
    "stated array": (state_an_array_that_is_not_there, "an array that could not be in it"),
    "empty constant": (leave_a_constant_without_its_value, "cannot load it"),
    "huge zeros of plain numbers": (
        lambda path: ask_for_all_memory(path, "ConstantOfShape", True, plain=True),
        "whatever the image",
    ),
    "huge zeros": (lambda path: ask_for_all_memory(path, "ConstantOfShape", False), "whatever the image"),
    "huge copies": (lambda path: ask_for_all_memory(path, "Expand", True), "whatever the image"),
    "huge tiles": (lambda path: ask_for_all_memory(path, "Tile", True), "whatever the image"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(_Bomb())), "cannot be read as ONNX"),
    "larger than ONNX can be": (lambda path: os.truncate(path, 2 * 10**9 + 1), "larger than 2 GB"),
    "foreign operators": (
        lambda path: write(path, network(domain="com.elsewhere")),
        "operators that are not ONNX's own",
    ),
    "fixed size": (lambda path: write(path, network(sides=(64, 64))), "its input is not one image of"),
    "absurd size": (lambda path: write(path, network(sides=(2**40, "w"))), "its input is not one image of"),
    "other input": (lambda path: write(path, network(input_name="x")), "its input is not one image of"),
    "three names for one class": (lambda path: write(path, network(known=4)), "for the 1 classes of the bundle"),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILED.values(), ids=SPOILED)
def test_what_is_no_network_of_ours_is_refused_in_one_sentence(
    spoil: Callable[[Path], object], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "model.onnx", network())
    spoil(path)
    with pytest.raises(UserError, match=said) as caught:
        open_session(path, 1, classes=1)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("cut", r"answers \(3, 7\) and \(2, 5, 7\) for an image of 7x5"),
        ("nine", "answers class 9 and knows 1"),
        ("no number", "answers no numbers for an image of 7x5"),
    ],
)
def test_an_answer_that_fits_no_image_is_refused(answer: str, said: str, tmp_path: Path) -> None:
    session = open_session(write(tmp_path / "model.onnx", network(answer=answer)), 1, classes=1)
    with pytest.raises(UserError, match=said):
        ask(session, IMAGE)


def test_a_network_that_fails_is_told_with_the_size_of_the_image(tmp_path: Path) -> None:
    session = open_session(write(tmp_path / "model.onnx", network()), 1, classes=1)
    with pytest.raises(UserError, match="fails on an image of 7x5 pixels"):
        ask(session, IMAGE.astype(np.float32))
