"""Which nodes on another provider are compute nodes, and which only shape arithmetic."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxcompress.errors import ProviderError
from onnxcompress.placement import compute_nodes_elsewhere
from onnxcompress.runtime import Execution, open_session

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
INT64 = TensorProto.INT64


def _all_on_the_cpu(model):
    return [(CPU, node.name, node.op_type) for node in model.graph.node]


@pytest.fixture
def model(kit):
    """A Conv whose result is flattened to a shape that is computed at run time."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Shape", ["a"], ["s"], name="shape"),
        helper.make_node("Gather", ["s", "zero"], ["n"], name="gather"),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"], name="unsqueeze"),
        helper.make_node("Concat", ["n1", "rest"], ["t"], name="concat", axis=0),
        helper.make_node("Greater", ["n", "zero"], ["g"], name="greater"),
        helper.make_node("Reshape", ["a", "t"], ["f"], name="reshape"),
        helper.make_node("MatMul", ["f", "v"], ["y"], name="dense"),
    ]
    constants = {
        "w": kit.whole((4, 3, 2, 2), seed=1),
        "v": kit.whole((80, 5), seed=2),
        "zero": np.array(0),
        "axes": np.array([0]),
        "rest": np.array([-1]),
    }
    outputs = [kit.value("y", ("n", 5)), kit.value("g", (), TensorProto.BOOL)]
    return kit.model(nodes, [kit.value("x", ("n", 3, 6, 5))], outputs, constants)


COMPUTE = ["conv (Conv)", "reshape (Reshape)", "dense (MatMul)"]


def test_shape_arithmetic_is_left_out(model):
    before = model.SerializeToString()
    assert compute_nodes_elsewhere(_all_on_the_cpu(model), model, CUDA) == COMPUTE
    assert model.SerializeToString() == before


@pytest.mark.parametrize("as_what", ["bytes", "path"])
def test_model_as_bytes_or_path(model, tmp_path, as_what):
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    given = path if as_what == "path" else path.read_bytes()
    assert compute_nodes_elsewhere(_all_on_the_cpu(model), given, CUDA) == COMPUTE


def test_nodes_where_they_should_be_are_no_strays(model):
    placed = [(CUDA, node.name, node.op_type) for node in model.graph.node]
    assert compute_nodes_elsewhere(placed, model, CUDA) == []
    placed[0] = (CPU, "conv", "Conv")
    assert compute_nodes_elsewhere(placed, model, CUDA) == ["conv (Conv)"]


def test_nodes_that_the_session_made_itself(model):
    """Copies between devices are no compute; a fused node under a new name is."""
    placed = [
        (CPU, "Memcpy", "MemcpyToHost"),
        (CPU, "Memcpy_1", "MemcpyFromHost"),
        (CPU, "conv_fused", "FusedConv"),
    ]
    assert compute_nodes_elsewhere(placed, model, CUDA) == ["conv_fused (FusedConv)"]


def test_no_assignments(model):
    assert compute_nodes_elsewhere([], model, CUDA) == []


def test_nodes_without_names_are_told_apart(model):
    """ONNX Runtime reports no name for them: an unnamed Shape must not excuse an unnamed Conv."""
    for node in model.graph.node:
        node.name = ""
    found = compute_nodes_elsewhere([(CPU, "", "Shape"), (CPU, "", "Conv")], model, CUDA)
    assert len(found) == 1
    assert "Conv" in found[0]


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        ("QLinearConv", TensorProto.UINT8),
        ("ConvInteger", TensorProto.INT32),
        ("MatMulInteger", TensorProto.INT32),
    ],
)
def test_quantised_layers_are_compute(kit, op, kind):
    """They make nothing but integers, and are the very work that CUDA was asked for."""
    scalars = ["s", "z"]
    inputs = {
        "QLinearConv": ["x", *scalars, "w", *scalars, *scalars],
        "ConvInteger": ["x", "w"],
        "MatMulInteger": ["x", "w"],
    }[op]
    constants = {
        "s": np.array(1, np.float32),
        "z": np.array(0, np.uint8),
        "w": np.zeros((5, 4) if op == "MatMulInteger" else (4, 3, 2, 2), np.uint8),
    }
    model = kit.model(
        [helper.make_node(op, inputs, ["y"], name="layer")],
        [kit.value("x", (1, 3, 6, 5), TensorProto.UINT8)],
        [kit.value("y", [None] * 4, kind)],
        constants,
    )
    found = compute_nodes_elsewhere([(CPU, "layer", op)], model, CUDA)
    assert found == [f"layer ({op})"]


def test_a_node_with_one_floating_output_is_compute(kit):
    nodes = [helper.make_node("TopK", ["x", "k"], ["v", "i"], name="topk")]
    outputs = [kit.value("v", (2, 2)), kit.value("i", (2, 2), INT64)]
    model = kit.model(nodes, [kit.value("x", (2, 3))], outputs, {"k": np.array([2])})
    assert compute_nodes_elsewhere(_all_on_the_cpu(model), model, CUDA) == ["topk (TopK)"]


def test_a_node_of_unknown_type_is_compute(kit):
    nodes = [helper.make_node("Mystery", ["x"], ["y"], name="m", domain="org.x")]
    values = kit.value("x", (2,)), kit.value("z", (2,))
    nodes.append(helper.make_node("Relu", ["x"], ["z"], name="relu"))
    model = kit.model(nodes, values[:1], values[1:], domains={"org.x": 1})
    assert compute_nodes_elsewhere([(CPU, "m", "Mystery")], model, CUDA) == ["m (Mystery)"]


class FakeSession:
    """A session that became what it is told, with nodes placed as it is told."""

    def __init__(self, providers, placed):
        self.providers, self.placed = providers, placed

    def __call__(self, source, options, providers):
        return self

    def get_providers(self):
        return self.providers

    def get_provider_graph_assignment_info(self):
        for provider, name, op in self.placed:
            node = SimpleNamespace(name=name, op_type=op)
            yield SimpleNamespace(ep_name=provider, get_nodes=lambda node=node: [node])

    def get_inputs(self):
        return []

    get_outputs = get_inputs


def _open(monkeypatch, model, execution, providers, placed):
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", FakeSession(providers, placed))
    with open_session(model, execution):
        pass


def test_cuda_alone_demands_every_compute_node(monkeypatch, model):
    placed = [(CUDA, "conv", "Conv"), (CPU, "shape", "Shape"), (CPU, "dense", "MatMul")]
    with pytest.raises(
        ProviderError, match=r"on the CPU: dense \(MatMul\); use --providers cuda,cpu"
    ):
        _open(monkeypatch, model, Execution(("cuda",)), [CUDA, CPU], placed)
    # Shape arithmetic is wanted on the CPU; and with cuda,cpu anything may run there.
    _open(monkeypatch, model, Execution(("cuda",)), [CUDA, CPU], placed[:2])
    _open(monkeypatch, model, Execution(("cuda", "cpu")), [CUDA, CPU], placed)


def test_long_lists_of_strays_are_cut(monkeypatch, model):
    placed = [(CPU, f"n{i}", "Relu") for i in range(11)]
    with pytest.raises(ProviderError, match=r"n7 \(Relu\) and 3 more;"):
        _open(monkeypatch, model, Execution(("cuda",)), [CUDA, CPU], placed)


def test_a_session_that_became_something_else(monkeypatch, model):
    with pytest.raises(ProviderError, match=f"{CUDA} was asked for, but the session runs on {CPU}"):
        _open(monkeypatch, model, Execution(("cuda", "cpu")), [CPU], [])
