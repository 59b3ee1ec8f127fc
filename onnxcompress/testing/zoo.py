"""The zoo: tiny models that between them hold every situation a pass must survive.

Where extents matter a model comes twice: once with all extents distinct, so that no axis can stand
in for another, and once with all extents equal, where a confusion of axes raises no error and only
shows in the numbers. Everything is built in memory from fixed seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import onnx

from onnxcompress.analyse.facts import Facts, analyse
from onnxcompress.analyse.sizes import input_specs, random_feeds
from onnxcompress.load.canonical import canonicalise
from onnxcompress.runtime import Array
from onnxcompress.testing import zoo_networks as networks
from onnxcompress.testing.zoo_layers import conv, gemm, matmul

_TYPES = onnx.TensorProto


@dataclass(frozen=True, eq=False)
class Entry:
    """One model of the zoo.

    Attributes:
        name: what test ids call it.
        build: makes the raw model, as a user might hand it over.
        sizes: representative size of every input.
        lone: whether the network is a single layer, so that its output error is the layer's.
        in_onnxruntime: whether ONNX Runtime's CPU provider has the kernels; where it has not, the
            model is run by ONNX's reference evaluator.
    """

    name: str
    build: Callable[[], onnx.ModelProto]
    sizes: Mapping[str, tuple[int, ...]]
    lone: bool = False
    in_onnxruntime: bool = True

    @cached_property
    def _raw(self) -> bytes:
        return bytes(self.build().SerializeToString())

    @cached_property
    def _canonical(self) -> bytes:
        return bytes(canonicalise(self.raw()).model.SerializeToString())

    def raw(self) -> onnx.ModelProto:
        """The model as built: a fresh copy at every call."""
        return onnx.load_model_from_string(self._raw)

    def canonical(self) -> onnx.ModelProto:
        """The model in canonical form: a fresh copy at every call."""
        return onnx.load_model_from_string(self._canonical)

    def facts(self, model: onnx.ModelProto | None = None) -> Facts:
        """Facts about the canonical model, or about another one with the same inputs."""
        return analyse(model if model is not None else self.canonical(), self.sizes)

    def feeds(self, *, seed: int = 0, batch: int | None = None) -> dict[str, Array]:
        """White noise for every input; the same for the same seed.

        Args:
            seed: of the generator.
            batch: another first dimension than the representative one.
        """
        sizes = {
            name: size if batch is None else (batch, *size[1:])[: len(size)]
            for name, size in self.sizes.items()
        }
        return random_feeds(self.raw(), sizes, seed=seed)

    @property
    def dynamic_batch(self) -> bool:
        """Whether the first dimension of every input is symbolic."""
        return all(spec.shape and spec.fixed(0) is None for spec in input_specs(self.raw()))


@cache
def zoo() -> tuple[Entry, ...]:
    """Every model of the zoo, single layers first."""
    return (*_convolutions(), *_denses(), *_networks())


def _lone(
    name: str,
    make: Callable[..., onnx.ModelProto],
    seed: int,
    x: Sequence[int | str],
    w: Sequence[int],
    *,
    size: tuple[int, ...] | None = None,
    in_onnxruntime: bool = True,
    **options: Any,
) -> Entry:
    """A single layer made by `make`; `size` is that of an input with symbolic dimensions."""
    build = partial(make, seed, x, w, **options)
    sizes = {"x": size or tuple(int(extent) for extent in x)}
    return Entry(name, build, sizes, lone=True, in_onnxruntime=in_onnxruntime)


def _convolutions() -> tuple[Entry, ...]:
    image, ones, square = (2, 24, 5, 7), [1, 1, 1, 1], ((16,) * 4, (16, 16, 3, 3))
    same: dict[str, Any] = {"strides": [2, 1], "kernel_shape": [2, 4], "size": (2, 24, 9, 7)}
    crooked: dict[str, Any] = {"pads": [0, 5, 2, 1], "strides": [2, 3], "dilations": [3, 2]}
    twin: dict[str, Any] = {"pads": [0, 2, 2, 1], "strides": [2, 2], "dilations": [2, 2]}
    return (
        _lone("plain", conv, 101, (2, 24, 10, 13), (40, 24, 3, 5)),
        _lone("confusable", conv, 103, *square, pads=ones),
        # Batch, channels, sizes and kernel all 3: too small to offer anything but the lossless.
        _lone("cube", conv, 105, (3,) * 4, (3,) * 4, rank=2, pads=ones),
        _lone("no_bias", conv, 107, image, (40, 24, 3, 2), biased=False),
        _lone("strided", conv, 109, (2, 24, 15, 17), (32, 24, 3, 4), **crooked),
        _lone("strided_confusable", conv, 111, *square, **twin),
        *(
            _lone(f"{mode.lower()}{suffix}", conv, 113, x, (40, 24, 2, 4), auto_pad=mode, **same)
            for mode in ("SAME_UPPER", "SAME_LOWER")
            for suffix, x in (("", (2, 24, 9, 7)), ("_dynamic", ("N", 24, "H", "W")))
        ),
        _lone("grouped", conv, 115, (3, 48, 6, 7), (32, 24, 3, 4), group=2, pads=[1, 0, 0, 2]),
        _lone("grouped_confusable", conv, 117, (2, 32, 16, 16), (32, 16, 3, 3), group=2, pads=ones),
        _lone("depthwise", conv, 119, image, (24, 1, 3, 2), rank=1, group=24),
        _lone("depthwise_multiplier", conv, 121, (2, 16, 5, 7), (48, 1, 3, 3), rank=1, group=16),
        _lone("one_in", conv, 123, (2, 1, 9, 8), (24, 1, 3, 5), rank=1),
        _lone("one_out", conv, 125, (3, 24, 5, 6), (1, 24, 3, 2), rank=1),
        _lone(
            "pointwise",
            conv,
            127,
            (2, 32, 9, 11),
            (40, 32, 1, 1),
            strides=[2, 3],
            pads=[1, 0, 2, 1],
        ),
        _lone("pointwise_confusable", conv, 129, (24,) * 4, (24, 24, 1, 1), biased=False),
        _lone("pointwise_grouped", conv, 131, (3, 48, 5, 6), (64, 24, 1, 1), group=2),
        _lone("conv1d", conv, 133, (2, 24, 19), (40, 24, 5), pads=[3, 1], strides=[2]),
        _lone("conv1d_confusable", conv, 135, (16,) * 3, (16, 16, 3), pads=[1, 1]),
        _lone("conv3d", conv, 137, (2, 16, 4, 7, 6), (24, 16, 2, 1, 3), pads=[0, 1, 2, 1, 0, 0]),
        _lone("conv3d_confusable", conv, 139, (3, 16, 3, 3, 3), (16, 16, 3, 3, 3), pads=[1] * 6),
        _lone("fp16", conv, 141, image, (40, 24, 3, 2), dtype=_TYPES.FLOAT16),
        _lone(
            "fp64",
            conv,
            143,
            (2, 16, 4, 5),
            (24, 16, 3, 2),
            dtype=_TYPES.DOUBLE,
            in_onnxruntime=False,
        ),
        _lone("rank_deficient", conv, 145, image, (40, 24, 3, 2), rank=8, noise=0.0),
        _lone(
            "rank_deficient_pointwise", conv, 147, (2, 32, 5, 7), (40, 32, 1, 1), rank=8, noise=0.0
        ),
    )


def _denses() -> tuple[Entry, ...]:
    x, w, b = (6, 32), (32, 40), (40,)
    scaled: dict[str, Any] = {"bias_shape": (6, 1), "alpha": 0.5, "beta": 2.5}
    transposed: dict[str, Any] = {"bias_shape": b, "alpha": 1.5, "beta": 0.25, "transB": 1}
    return (
        _lone("gemm", gemm, 201, x, w, bias_shape=b),
        _lone("gemm_scaled", gemm, 203, x, w, **scaled),
        _lone("gemm_transposed", gemm, 205, x, (40, 32), **transposed),
        *(
            _lone(name, gemm, 207, (24, 24), (24, 24), bias_shape=(24,), transB=flag)
            for name, flag in (("gemm_confusable", 0), ("gemm_confusable_transposed", 1))
        ),
        _lone("gemm_left_transposed", gemm, 209, (32, 6), w, transA=1),
        _lone("matmul", matmul, 211, (2, 7, 32), w),
        _lone("matmul_confusable", matmul, 213, (24,) * 3, (24, 24)),
        _lone("matmul_vector", matmul, 215, (32,), w),
        _lone("matmul_left", matmul, 217, (2, 40, 7), w, left=True),
        _lone("fp16_dense", gemm, 219, x, w, dtype=_TYPES.FLOAT16),
        _lone("fp64_dense", gemm, 221, x, w, dtype=_TYPES.DOUBLE),
        _lone("bf16_dense", matmul, 223, x, w, dtype=_TYPES.BFLOAT16, in_onnxruntime=False),
        _lone("rank_deficient_dense", gemm, 225, x, (40, 32), rank=8, noise=0.0, transB=1),
    )


def _networks() -> tuple[Entry, ...]:
    fed = networks.fed_at_run_time
    image, picture = {"x": (2, 18, 7, 9)}, (2, 24, 5, 7)
    return (
        Entry("opset11", networks.opset11, image),
        Entry("opset21", networks.opset21, image),
        Entry("dynamic_batch", networks.dynamic_batch, image),
        Entry("dynamic_sizes", networks.dynamic_sizes, image),
        Entry("shared_weight", networks.shared_weight, {"x": (2, 24, 7, 9)}),
        Entry("omitted_bias", networks.omitted_bias, {"x": (3, 20, 5, 7)}),
        Entry("conv_is_output", networks.conv_is_output, {"x": (3, 20, 7, 6)}),
        Entry("residual", networks.residual, {"x": picture}),
        Entry("branches", networks.branches, {"x": (2, 24, 6, 6)}),
        Entry("many", networks.many, {"x0": (2, 6, 4, 5)}),
        Entry("zero_weight", networks.zero_weight, {"x": (2, 20, 5, 6)}),
        Entry("name_clash", networks.name_clash, {"x": picture}),
        Entry("subgraph", networks.subgraph, {"x": (2, 20, 5, 7), "flag": ()}),
        Entry(
            "weight_is_input",
            lambda: fed("Conv", picture, (40, 24, 3, 2), {"w": (40, 24, 3, 2)}),
            {"x": picture, "w": (40, 24, 3, 2)},
        ),
        Entry(
            "dense_weight_is_input",
            lambda: fed("MatMul", (6, 32), (32, 40), {"w": (32, 40)}),
            {"x": (6, 32), "w": (32, 40)},
        ),
        Entry(
            "bias_is_input",
            lambda: fed("Conv", picture, (40, 24, 3, 2), {"b": (40,)}),
            {"x": picture, "b": (40,)},
        ),
        Entry(
            "point_bias_is_input",
            lambda: fed("Conv", picture, (40, 24, 1, 1), {"b": (40,)}),
            {"x": picture, "b": (40,)},
        ),
        Entry(
            "dense_bias_is_input",
            lambda: fed("Gemm", (6, 32), (32, 40), {"b": (40,)}),
            {"x": (6, 32), "b": (40,)},
        ),
    )
