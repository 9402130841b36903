"""As much of ONNX's message format as says what a file runs and what it refers to, for protobuf to read.

The package ``onnx`` has it all and is 30 MB larger; onnxruntime brings protobuf along. Names and numbers are those of
onnx.proto, which may grow and never changes them; fields that are not listed are skipped.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "tskd.onnx"
_MESSAGES = {
    "ModelProto": {"graph": (7, "GraphProto"), "functions": (25, "*FunctionProto")},
    "FunctionProto": {"node": (7, "*NodeProto"), "domain": (10, "string")},
    "GraphProto": {
        "node": (1, "*NodeProto"), "initializer": (5, "*TensorProto"),
        "sparse_initializer": (15, "*SparseTensorProto"),
    },
    "NodeProto": {
        "input": (1, "*string"), "output": (2, "*string"), "op_type": (4, "string"),
        "attribute": (5, "*AttributeProto"), "domain": (7, "string"),
    },
    "AttributeProto": {
        "t": (5, "TensorProto"), "g": (6, "GraphProto"), "ints": (8, "*int64"), "tensors": (10, "*TensorProto"),
        "graphs": (11, "*GraphProto"),
        "sparse_tensor": (22, "SparseTensorProto"), "sparse_tensors": (23, "*SparseTensorProto"),
    },
    "TensorProto": {
        "dims": (1, "*int64"), "data_type": (2, "int32"), "int64_data": (7, "*int64"), "name": (8, "string"),
        "raw_data": (9, "bytes"), "external_data": (13, "*StringStringEntryProto"), "data_location": (14, "int32"),
    },
    "SparseTensorProto": {"values": (1, "TensorProto"), "indices": (2, "TensorProto")},
    "StringStringEntryProto": {"key": (1, "string"), "value": (2, "string")},
}  # fmt: skip
"""Message -> field -> its number and type; ``*`` marks lists."""

EXTERNAL = 1
"""``TensorProto.data_location`` of weights that lie in another file."""
INT64 = 7
"""``TensorProto.data_type``."""


def parse(content: bytes) -> Any:
    """Return the model message of an ONNX file; raises google.protobuf's DecodeError."""
    return _model_class().FromString(content)


@cache
def _model_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="tskd/onnx.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            message.field.add(name=field, number=number, **_typed(kind))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.ModelProto"))


def _typed(kind: str) -> dict[str, Any]:
    field = descriptor_pb2.FieldDescriptorProto
    label = field.LABEL_REPEATED if kind.startswith("*") else field.LABEL_OPTIONAL
    plain = kind.removeprefix("*")
    if plain in _MESSAGES:
        return {"label": label, "type": field.TYPE_MESSAGE, "type_name": f".{_PACKAGE}.{plain}"}
    return {"label": label, "type": getattr(field, f"TYPE_{plain.upper()}")}
