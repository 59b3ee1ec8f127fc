"""A digest of a model's content: equal for equal networks, whatever the protobuf encoding."""

from __future__ import annotations

import hashlib

import onnx

_PACKED = frozenset(
    getattr(onnx.TensorProto, name)
    for name in ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1")
    if hasattr(onnx.TensorProto, name)
)
"""Several elements to a byte, packed differently in raw and in typed fields."""


def model_digest(model: onnx.ModelProto) -> str:
    """SHA-256 over structure and weights, without a serialised copy of the whole model.

    The order of nodes and initializers counts; the encoding of weights does not (raw or typed
    fields give the same digest for the same values and dtype).
    """
    digest = hashlib.sha256()
    for entry in model.opset_import:
        digest.update(f"{entry.domain}:{entry.version};".encode())
    for kind, values in (("in", model.graph.input), ("out", model.graph.output)):
        for value in values:
            digest.update(kind.encode() + value.SerializeToString(deterministic=True))
    for node in model.graph.node:
        digest.update(node.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        _add(digest, tensor)
    for sparse in model.graph.sparse_initializer:
        digest.update(f"sparse{list(sparse.dims)}".encode())
        _add(digest, sparse.values)
        _add(digest, sparse.indices)
    for function in model.functions:
        digest.update(function.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _add(digest: hashlib._Hash, tensor: onnx.TensorProto) -> None:
    digest.update(f"{tensor.name}|{tensor.data_type}|{list(tensor.dims)}".encode())
    if tensor.data_type == onnx.TensorProto.STRING:
        for text in tensor.string_data:
            digest.update(f"{len(text)}:".encode() + text)
    elif tensor.raw_data and tensor.data_type not in _PACKED:
        digest.update(tensor.raw_data)
    else:
        digest.update(onnx.numpy_helper.to_array(tensor).tobytes())
