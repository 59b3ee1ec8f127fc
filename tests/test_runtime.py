"""Sessions: the provider asked for or an error, and nothing left behind."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from onnxcompress.errors import ModelError, ProviderError, UsageError
from onnxcompress.runtime import PROVIDERS, Execution, default_threads, device_name, open_session

ONE = Execution(threads=1)
SIZE = (2, 3, 6, 5)


@pytest.fixture
def model(kit):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Shape", ["a"], ["s"], name="shape"),
        helper.make_node("Relu", ["a"], ["y"], name="relu"),
    ]
    outputs = [kit.value("y", (2, 4, 5, 4)), kit.value("s", (4,), 7)]
    weights = {"w": kit.whole((4, 3, 2, 2), seed=1)}
    return kit.model(nodes, [kit.value("x", SIZE)], outputs, weights)


@pytest.fixture
def feeds(kit):
    return {"x": kit.whole(SIZE, seed=2)}


@pytest.fixture
def no_gpu(model):
    if "CUDAExecutionProvider" in ort.get_available_providers():
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CUDAExecutionProvider"]
        )
        if "CUDAExecutionProvider" in session.get_providers():
            pytest.skip("this machine has a working GPU")


@pytest.mark.parametrize("as_what", ["model", "bytes", "path"])
def test_it_runs(kit, model, feeds, tmp_path, as_what):
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    given = {"model": model, "bytes": model.SerializeToString(), "path": path}[as_what]
    with open_session(given, ONE) as session:
        assert (session.input_names, session.output_names) == (("x",), ("y", "s"))
        found = session.run(feeds)
    for one, other in zip(found, kit.run(model, feeds), strict=True):
        np.testing.assert_array_equal(one, other)


def test_runner_runs_once_per_call(model, feeds, monkeypatch):
    calls = []
    real = ort.InferenceSession.run
    monkeypatch.setattr(
        ort.InferenceSession, "run", lambda self, *args: calls.append(1) or real(self, *args)
    )
    with open_session(model, ONE) as session:
        once = session.runner(feeds)
        assert calls == []
        once()
        once()
    assert len(calls) == 2


@pytest.mark.parametrize("providers", [("cuda",), ("cuda", "cpu")])
def test_cuda_without_a_gpu_is_an_error(no_gpu, model, providers):
    with (
        pytest.raises(ProviderError, match="CUDAExecutionProvider") as caught,
        open_session(model, Execution(providers, threads=1)),
    ):
        pass
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


def test_provider_that_is_not_built_in(model, monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with (
        pytest.raises(ProviderError, match="has no CUDAExecutionProvider: install"),
        open_session(model, Execution(("cuda",), threads=1)),
    ):
        pass


@pytest.mark.parametrize(
    "providers", [(), ("tpu",), ("CPU",), ("cpu", "cpu"), ("cuda", "tensorrt"), ("",), "cpu"]
)
def test_unknown_providers(providers):
    with pytest.raises(UsageError, match="give cpu, cuda, or cuda,cpu") as caught:
        Execution(providers)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_must_be_positive(threads):
    with pytest.raises(UsageError, match=f"not {threads}"):
        Execution(threads=threads)


def test_defaults():
    execution = Execution()
    assert (execution.providers, execution.device) == (("cpu",), "cpu")
    assert execution.threads == default_threads() >= 1
    assert Execution(("cuda", "cpu")).device == "cuda"
    assert set(PROVIDERS) == {"cpu", "cuda"}


def _spied(monkeypatch, model, execution):
    """The options a session was made with."""
    seen = []
    real = ort.InferenceSession

    def spy(source, options, providers):
        seen.append((options, providers))
        return real(source, options, providers=providers)

    monkeypatch.setattr(ort, "InferenceSession", spy)
    with open_session(model, execution):
        pass
    ((options, providers),) = seen
    assert providers == ["CPUExecutionProvider"]
    return options


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_reach_the_session(monkeypatch, model, threads):
    options = _spied(monkeypatch, model, Execution(threads=threads))
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)


@pytest.mark.parametrize("optimise", [True, False])
def test_optimisation_reaches_the_session(monkeypatch, model, optimise):
    level = _spied(
        monkeypatch, model, Execution(threads=1, optimise=optimise)
    ).graph_optimization_level
    levels = ort.GraphOptimizationLevel
    assert level == (levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL)


@pytest.mark.parametrize("spinning", [True, False])
def test_spinning_reaches_the_session(monkeypatch, model, spinning):
    options = _spied(monkeypatch, model, Execution(threads=1, spinning=spinning))
    try:
        entry = options.get_session_config_entry("session.intra_op.allow_spinning")
    except RuntimeError:
        entry = None
    assert (entry == "0") is not spinning


def test_handle_is_useless_after_the_block(model, feeds):
    with open_session(model, ONE) as session:
        session.run(feeds)
    with pytest.raises(ModelError):
        session.run(feeds)
    with pytest.raises((ModelError, AttributeError)):
        session.runner(feeds)


def test_session_is_given_back_even_after_an_error(model, feeds):
    with pytest.raises(KeyError), open_session(model, ONE) as session:
        raise KeyError
    with pytest.raises(ModelError):
        session.run(feeds)


@pytest.mark.parametrize("given", [b"", b"nonsense", onnx.ModelProto(ir_version=8)])
def test_model_that_onnx_runtime_refuses(given):
    with (
        pytest.raises(ModelError, match="ONNX Runtime refuses the model: ") as caught,
        open_session(given, ONE),
    ):
        pass
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_missing_path(tmp_path):
    with (
        pytest.raises(ModelError, match="refuses the model"),
        open_session(tmp_path / "none.onnx", ONE),
    ):
        pass


def test_operator_that_onnx_runtime_does_not_know(kit):
    nodes = [helper.make_node("Mystery", ["x"], ["y"], name="m", domain="org.x")]
    values = kit.value("x", (2,)), kit.value("y", (2,))
    model = kit.model(nodes, values[:1], values[1:], domains={"org.x": 1})
    with pytest.raises(ModelError, match="Mystery"), open_session(model, ONE):
        pass


@pytest.mark.parametrize(
    "bad",
    [{}, {"z": np.zeros(1, np.float32)}, {"x": np.zeros((2, 3, 6, 4), np.float32)}],
    ids=["nothing", "wrong name", "wrong size"],
)
def test_feeds_that_do_not_fit(model, bad):
    with open_session(model, ONE) as session, pytest.raises(ModelError, match="fails") as caught:
        session.run(bad)
    assert "\n" not in str(caught.value)


def test_device_name():
    assert device_name(Execution()).startswith("cpu:")
    assert len(device_name(Execution())) > len("cpu:")


@pytest.mark.gpu
def test_cuda_computes_the_same(kit, model, feeds):
    try:
        with open_session(model, Execution(("cuda",))) as session:
            found = session.run(feeds)
            once = session.runner(feeds)
            once()
    except ProviderError as error:
        pytest.skip(f"no session on CUDA here: {error}")
    # Small whole numbers are exact even in TF32.
    for one, other in zip(found, kit.run(model, feeds), strict=True):
        np.testing.assert_array_equal(one, other)
    assert device_name(Execution(("cuda",))).startswith("cuda:")
