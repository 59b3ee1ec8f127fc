"""A digest of a model's content: equal for equal networks, whatever the protobuf encoding."""

from __future__ import annotations

import hashlib

import onnx


def model_digest(model: onnx.ModelProto) -> str:
    """SHA-256 over structure and weights, without a serialised copy of the whole model.

    The order of nodes and initializers counts; the encoding of weights does not (raw or typed
    fields give the same digest for the same values and dtype).
    """
    digest = hashlib.sha256()
    for entry in model.opset_import:
        digest.update(f"{entry.domain}:{entry.version};".encode())
    for value in (*model.graph.input, *model.graph.output):
        digest.update(value.SerializeToString(deterministic=True))
    for node in model.graph.node:
        digest.update(node.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        digest.update(f"{tensor.name}|{tensor.data_type}|{list(tensor.dims)}".encode())
        if tensor.raw_data:
            digest.update(tensor.raw_data)
        else:
            digest.update(onnx.numpy_helper.to_array(tensor).tobytes())
    for function in model.functions:
        digest.update(function.SerializeToString(deterministic=True))
    return digest.hexdigest()


def bytes_digest(data: bytes) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(data).hexdigest()
