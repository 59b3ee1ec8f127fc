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
from onnxcompress.finetune.steps import supported

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
        if supported(case.model)
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
