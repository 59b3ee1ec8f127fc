"""Every operator against the onnx package's own node tests: what it says that operators compute."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

pytest.importorskip("torch", reason="no PyTorch: pip install 'onnxcompress[finetune]'")

from onnxcompress.finetune.network import Network
from onnxcompress.finetune.operators.call import UnsupportedError
from onnxcompress.finetune.operators.table import OPERATORS

REFUSED = {
    "in training mode": (
        "batchnorm_example_training_mode",
        "batchnorm_epsilon_training_mode",
        "training_dropout",
        "training_dropout_default",
        "training_dropout_default_mask",
        "training_dropout_mask",
    ),
    "of type STRING": ("equal_string", "equal_string_broadcast"),
    "batch axes": ("gathernd_example_int32_batch_dim1",),
    "its indices are used": (
        "maxpool_with_argmax_2d_precomputed_pads",
        "maxpool_with_argmax_2d_precomputed_strides",
    ),
    "tf_crop_and_resize": (
        "resize_tf_crop_and_resize",
        "resize_tf_crop_and_resize_extrapolation_value",
        "resize_tf_crop_and_resize_axes_2_3",
        "resize_tf_crop_and_resize_axes_3_2",
    ),
    "reduction mul": ("scatter_elements_with_reduction_mul", "scatternd_multiply"),
    "reduction max": (
        "scatter_elements_with_reduction_max",
        "scatternd_max",
        "scatternd_max_with_element_indices",
    ),
    "reduction min": (
        "scatter_elements_with_reduction_min",
        "scatternd_min",
        "scatternd_min_with_element_indices",
    ),
}
LEFT_OUT = {
    # ONNX Runtime computes these from the whole size, as we do; the tests from the fractional one.
    "resize_downsample_scales_linear_align_corners",
    "resize_downsample_scales_cubic_align_corners",
    # There is nothing to take the largest of.
    "reduce_max_empty_set",
    "reduce_max_empty_set_bool",
    "reduce_min_empty_set",
}


@cache
def cases() -> dict[str, Any]:
    """Node tests of which the interpreter knows every operator, and whose values are tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        every = collect_testcases(None)
    return {
        case.name.removeprefix("test_"): case
        for case in every
        if all(node.op_type in OPERATORS and node.domain == "" for node in case.model.graph.node)
        and all(
            isinstance(v, np.ndarray | np.generic)
            for sides in case.data_sets
            for v in (*sides[0], *sides[1])
        )
    }


REASONS = {name: reason for reason, names in REFUSED.items() for name in names}
ACCEPTED = sorted(set(cases()) - set(REASONS) - LEFT_OUT)


@pytest.mark.parametrize("name", ACCEPTED)
def test_node(name: str) -> None:
    case = cases()[name]
    for given, expected in case.data_sets:
        made = answers(case.model, given)
        for output, wanted in zip(case.model.graph.output, expected, strict=True):
            found = made[output.name]
            wanted = np.asarray(wanted)
            assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
            # Half precision is computed in single precision here, and rounded once.
            half = output.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16
            np.testing.assert_allclose(
                found.astype(np.float64) if half else found,
                wanted.astype(np.float64) if half else wanted,
                rtol=1 / 64 if half else case.rtol,
                atol=case.atol,
            )


@pytest.mark.parametrize("name", sorted(REASONS))
def test_refused(name: str) -> None:
    case = cases()[name]
    with pytest.raises(UnsupportedError, match=REASONS[name]):
        answers(case.model, case.data_sets[0][0])


def test_every_operator_has_a_test() -> None:
    tested = {node.op_type for name in ACCEPTED for node in cases()[name].model.graph.node}
    assert set(OPERATORS) == tested & set(OPERATORS)
    assert len(ACCEPTED) > 1_000


OLDER = {
    "Clip, bounds as attributes": (6, "float[2, 3, 4]", "y = Clip <min = -0.5, max = 0.25> (x)"),
    "Clip, one bound": (6, "float[2, 3, 4]", "y = Clip <min = -0.5> (x)"),
    "Softmax over all that follows": (11, "float[2, 3, 4]", "y = Softmax <axis = 1> (x)"),
    "LogSoftmax by its old default": (11, "float[2, 3, 4]", "y = LogSoftmax (x)"),
    "Squeeze, axes as attribute": (
        11,
        "float[2, 4]",
        "u = Unsqueeze <axes = [1, 3]> (z) y = Squeeze <axes = [1, 3]> (u)",
    ),
    "Unsqueeze, axes as attribute": (11, "float[2, 1, 3, 4]", "y = Unsqueeze <axes = [1]> (x)"),
    "Slice, all as attributes": (
        9,
        "float[1, 2, 4]",
        "y = Slice <axes = [0, 1], starts = [1, -2], ends = [9, 3]> (x)",
    ),
    "Pad, amounts as attribute": (
        10,
        "float[2, 4, 5]",
        "y = Pad <pads = [0, 1, 0, 0, 0, 1], value = 2.5> (x)",
    ),
    "Pad, mirrored": (
        10,
        "float[2, 3, 7]",
        'y = Pad <pads = [0, 0, 2, 0, 0, 1], mode = "reflect"> (x)',
    ),
    "ReduceSum, axes as attribute": (11, "float[2, 1, 4]", "y = ReduceSum <axes = [1]> (x)"),
    "ReduceMean, axes as attribute": (
        13,
        "float[3]",
        "y = ReduceMean <axes = [0, 2], keepdims = 0> (x)",
    ),
    "Split, sizes as attribute": (
        11,
        "float[2, 2, 4]",
        "y, w = Split <axis = 1, split = [2, 1]> (x)",
    ),
    "TopK, count as attribute": (9, "float[2, 3, 2]", "y, w = TopK <k = 2> (x)"),
    "Resize by its old rule": (10, "float[2, 6, 4]", 'y = Resize <mode = "nearest"> (x, s)'),
    "Dropout of an old export": (7, "float[2, 3, 4]", "y = Dropout <ratio = 0.4> (x)"),
    "Flatten from the end": (11, "float[6, 4]", "y = Flatten <axis = -1> (x)"),
}


@pytest.mark.parametrize("name", OLDER)
def test_older_forms(name: str) -> None:
    """What an input says today was an attribute once, or worked by another rule."""
    opset, shape, body = OLDER[name]
    model = onnx.parser.parse_model(
        f"""<ir_version: 4, opset_import: ["" : {opset}]>
        net (float[2, 3, 4] x, float[2, 4] z) => ({shape} y) <float[3] s = {{1, 2, 1}}>
        {{ {body} }}"""
    )
    if "z" not in "".join(i for node in model.graph.node for i in node.input):
        del model.graph.input[1]
    generator = np.random.default_rng(0)
    given = [
        generator.standard_normal([d.dim_value for d in i.type.tensor_type.shape.dim])
        for i in model.graph.input
    ]
    feeds = [values.astype(np.float32) for values in given]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(
        ["y"], {i.name: v for i, v in zip(model.graph.input, feeds, strict=True)}
    )
    found = answers(model, feeds)["y"]
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(mode: str) -> None:
    """The package tests Upsample by nearest neighbours only; ONNX Runtime knows both modes."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 4, opset_import: ["" : 9]>
        net (float[1, 2, 3, 5] x) => (float[1, 2, 6, 15] y)
        <float[4] s = {{1, 1, 2, 3}}>
        {{ y = Upsample <mode = "{mode}"> (x, s) }}"""
    )
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 5)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": x})
    np.testing.assert_allclose(answers(model, [x])["y"], wanted, rtol=1e-5, atol=1e-6)


def answers(model: onnx.ModelProto, given: list[Any]) -> dict[str, np.ndarray]:
    feeds = {
        value.name: array
        for value, array in zip(model.graph.input, map(np.asarray, given), strict=True)
    }
    return Network(model).eval().answers(feeds)
