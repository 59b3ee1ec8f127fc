"""Who answers for the teacher: what ONNX Runtime says is what the interpreter says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest

torch = pytest.importorskip("torch", reason="no PyTorch: pip install 'onnxcompress[finetune]'")

from onnxcompress.finetune import job  # noqa: E402
from onnxcompress.finetune.network import Network  # noqa: E402
from onnxcompress.finetune.settings import Effort, Settings  # noqa: E402
from onnxcompress.finetune.teacher import answering, is_single  # noqa: E402
from onnxcompress.progress import Silent  # noqa: E402

# Inputs that PyTorch widens, an output that is no floating-point one, a function of its own.
MIXED = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
net (float[N, 3, 4, 4] x, uint16[N, 1, 1, 1] k) => (float[N, 3, 4, 4] y, int64[N, 1, 4, 4] best) {
    z = Cast <to = 1> (k) t = own.twice (x) s = Add (t, z) y = Relu (s)
    best = ArgMax <axis = 1> (y) }
<domain: "own", opset_import: ["" : 17]> twice (a) => (b) { h = Identity (a) b = Add (a, h) }"""


def test_what_a_session_says() -> None:
    """From several threads at once, of batches with channels last, too."""
    model = onnx.parser.parse_model(MIXED)
    oracle = onnx.reference.ReferenceEvaluator(model)
    generator = np.random.default_rng(0)
    arrays = [
        {
            "x": generator.standard_normal((2, 3, 4, 4)).astype(np.float32),
            "k": generator.integers(0, 9, (2, 1, 1, 1)).astype(np.uint16),
        }
        for _ in range(8)
    ]
    student = Network(model)
    feeds = [student.given(one) for one in arrays]
    for one in feeds:
        one["x"] = one["x"].contiguous(memory_format=torch.channels_last)
    with answering(model, ["s"], threads=1) as teacher, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: teacher(one, also=("s",)), feeds))
        assert list(teacher(feeds[0])) == ["y"]
    for one, given in zip(found, arrays, strict=True):
        wanted = oracle.run(["y"], given)[0]
        assert list(one) == ["y", "s"]
        np.testing.assert_array_equal(one["y"].numpy(), wanted)
        np.testing.assert_array_equal(one["s"].numpy(), 2 * given["x"] + given["k"])


def test_what_a_session_would_compute_otherwise(teacher: Any) -> None:
    assert is_single(teacher)
    for kind in ("FLOAT16", "BFLOAT16", "DOUBLE"):
        for place in ("input", "output", "initializer"):
            other = onnx.ModelProto()
            other.CopyFrom(teacher)
            which = getattr(other.graph, place)[0]
            if place == "initializer":
                which.data_type = getattr(onnx.TensorProto, kind)
            else:
                which.type.tensor_type.elem_type = getattr(onnx.TensorProto, kind)
            assert not is_single(other)


@pytest.mark.parametrize("halved", [False, True])
def test_sessions_answer_where_they_can(
    teacher: Any, forgetful: Any, images: Any, monkeypatch: pytest.MonkeyPatch, halved: bool
) -> None:
    """Half precision is widened in training only: there the interpreter answers."""
    if halved:
        for value in (*teacher.graph.input, *teacher.graph.output):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        for tensor in teacher.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    asked = []

    @contextmanager
    def watched(model: Any, also: Sequence[str], threads: int) -> Iterator[Any]:
        asked.append((tuple(also), threads))
        with answering(model, also, threads) as session:
            yield session

    monkeypatch.setattr(job, "answering", watched)
    data = images(teacher, 160)
    settings = Settings(effort=Effort(epochs=2), batch=16, rate=0.01, threads=2)
    found = job.distil(forgetful(teacher), teacher, data, settings, Silent())
    assert found.improved
    assert asked == ([] if halved else [(("s", "y"), 2)])
