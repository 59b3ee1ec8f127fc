"""Builders of the zoo's models: weights like trained ones, and networks of a single layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Weights = NDArray[Any]
Size = Sequence[int | str]

FLOAT = onnx.TensorProto.FLOAT
OPSET, IR_VERSION = 17, 8


def weight(
    seed: int,
    shape: Sequence[int],
    *,
    rank: int,
    noise: float = 0.05,
    group: int = 1,
    dtype: int = FLOAT,
) -> Weights:
    """A weight as training leaves them: a strong part of low channel rank, and noise.

    Args:
        seed: of the generator.
        shape: [T, S / group, *k]; for a matrix [m, n].
        rank: channel rank of the strong part, in both modes and in every group.
        noise: standard deviation of the rest, relative to the strong part; 0 gives exact rank.
        group: how many blocks along the first axis have a strong part of their own.
        dtype: ONNX element type.

    Returns:
        The weight, scaled so that white noise of unit variance comes out at about unit variance.
    """
    random = np.random.default_rng(seed)
    rows, columns, *kernel = shape
    blocks = []
    for _ in range(group):
        core = random.standard_normal((rank, rank, *kernel))
        left = np.linalg.qr(random.standard_normal((rows // group, rank)))[0]
        right = np.linalg.qr(random.standard_normal((columns, rank)))[0]
        blocks.append(np.einsum("ta,ab...,sb->ts...", left, core, right))
    strong = np.concatenate(blocks)
    values = strong + noise * strong.std() * random.standard_normal(strong.shape)
    values *= np.sqrt(rows) / np.linalg.norm(values)
    return _typed(values, dtype)


def bias(seed: int, *shape: int, dtype: int = FLOAT) -> Weights:
    """A standard normal bias."""
    return _typed(np.random.default_rng(seed).standard_normal(shape), dtype)


def assemble(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Size],
    outputs: Sequence[str],
    constants: Mapping[str, Weights],
    *,
    dtype: int = FLOAT,
    types: Mapping[str, int] | None = None,
    opset: int = OPSET,
    ir_version: int = IR_VERSION,
) -> onnx.ModelProto:
    """A model whose output shapes are inferred.

    Args:
        nodes: in order of execution.
        inputs: size of every input; text is a symbolic dimension.
        outputs: names of the outputs.
        constants: initializers by name.
        dtype: ONNX element type of inputs and outputs.
        types: element types of single inputs or outputs that differ from `dtype`.
        opset: version of the default domain.
        ir_version: IR version.
    """
    kinds = types or {}

    def value(name: str, shape: Size | None) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, kinds.get(name, dtype), shape)

    graph = onnx.helper.make_graph(
        nodes,
        "zoo",
        [value(name, shape) for name, shape in inputs.items()],
        [value(name, None) for name in outputs],
        [onnx.numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=ir_version
    )
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    del model.graph.value_info[:]
    return model


def conv(
    seed: int,
    x: Size,
    w: Sequence[int],
    *,
    rank: int = 11,
    noise: float = 0.05,
    biased: bool = True,
    dtype: int = FLOAT,
    opset: int = OPSET,
    **attributes: Any,
) -> onnx.ModelProto:
    """A network of one Conv node called `conv`.

    Args:
        seed: of the weight; its successor is the seed of the bias.
        x: input size [N, C, *spatial].
        w: weight shape [T, C / group, *k].
        rank: channel rank of the weight's strong part.
        noise: what is added to it, see `weight`.
        biased: whether there is a bias.
        dtype: ONNX element type.
        opset: version of the default domain.
        **attributes: of the node.
    """
    group = int(attributes.get("group", 1))
    constants = {"w": weight(seed, w, rank=rank, noise=noise, group=group, dtype=dtype)}
    if biased:
        constants["b"] = bias(seed + 1, w[0], dtype=dtype)
    node = onnx.helper.make_node("Conv", ["x", *constants], ["y"], name="conv", **attributes)
    return assemble([node], {"x": x}, ["y"], constants, dtype=dtype, opset=opset)


def gemm(
    seed: int,
    x: Size,
    w: Sequence[int],
    *,
    rank: int = 11,
    noise: float = 0.05,
    bias_shape: Sequence[int] = (),
    dtype: int = FLOAT,
    **attributes: Any,
) -> onnx.ModelProto:
    """A network of one Gemm node called `gemm`.

    Args:
        seed: of the weight; its successor is the seed of the bias.
        x: input size [N, features].
        w: weight shape as stored, so [out, in] with transB=1.
        rank: rank of the weight's strong part.
        noise: what is added to it, see `weight`.
        bias_shape: shape of the bias; empty for none.
        dtype: ONNX element type.
        **attributes: of the node.
    """
    constants = {"w": weight(seed, w, rank=rank, noise=noise, dtype=dtype)}
    if bias_shape:
        constants["b"] = bias(seed + 1, *bias_shape, dtype=dtype)
    node = onnx.helper.make_node("Gemm", ["x", *constants], ["y"], name="gemm", **attributes)
    return assemble([node], {"x": x}, ["y"], constants, dtype=dtype)


def matmul(
    seed: int,
    x: Size,
    w: Sequence[int],
    *,
    rank: int = 11,
    noise: float = 0.05,
    dtype: int = FLOAT,
    left: bool = False,
) -> onnx.ModelProto:
    """A network of one MatMul node called `matmul`.

    Args:
        seed: of the weight.
        x: input size [..., in].
        w: weight shape [in, out].
        rank: rank of the weight's strong part.
        noise: what is added to it, see `weight`.
        dtype: ONNX element type.
        left: whether the constant is the left operand.
    """
    constants = {"w": weight(seed, w, rank=rank, noise=noise, dtype=dtype)}
    operands = ["w", "x"] if left else ["x", "w"]
    node = onnx.helper.make_node("MatMul", operands, ["y"], name="matmul")
    return assemble([node], {"x": x}, ["y"], constants, dtype=dtype)


def _typed(values: Weights, dtype: int) -> Weights:
    return np.asarray(values, dtype=onnx.helper.tensor_dtype_to_np_dtype(dtype))
