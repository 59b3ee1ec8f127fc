"""The Python interface: every kind of source, nothing mutated, the same errors, a light import."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import onnxcompress as oc

FORM: dict[str, Any] = {"passes": ["svd:rank=full"], "gate": False}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    import onnxcompress.latency.interleave as interleave

    brief = interleave.Budget(rounds=2, seconds=0.0, min_runs=1, warmup_runs=1)
    monkeypatch.setattr(interleave, "Budget", lambda **_options: brief)
    monkeypatch.setattr("onnxcompress.verify.verdict.peak_memory_bytes", lambda *_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def model() -> onnx.ModelProto:
    """1x1 convolution, ReLU, 3x3 convolution; metadata; a dynamic batch."""
    made = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17], metadata_props: ["who": "me"]>
    small (float[N, 4, 5, 7] x) => (float[N, 6, 5, 7] y)
    {
      [point] a = Conv <kernel_shape = [1, 1]> (x, w1)
      [relu] b = Relu (a)
      [wide] y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, w2)
    }
    """)
    generator = np.random.default_rng(9)
    for name, shape in {"w1": (8, 4, 1, 1), "w2": (6, 8, 3, 3)}.items():
        values = generator.standard_normal(shape).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return made


def sources(model: onnx.ModelProto, folder: Path) -> dict[str, Any]:
    path = folder / "in.onnx"
    path.write_bytes(model.SerializeToString())
    return {
        "path": path,
        "text": str(path),
        "bytes": path.read_bytes(),
        "stream": io.BytesIO(path.read_bytes()),
        "proto": model,
        "graph": gs.import_onnx(model),
    }


def node_names(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "stream", "proto", "graph"])
def test_sources(model: onnx.ModelProto, tmp_path: Path, kind: str) -> None:
    before = model.SerializeToString()
    source = sources(model, tmp_path)[kind]
    if kind == "graph":
        graph_before = gs.export_onnx(source.copy()).SerializeToString()
    result = oc.compress(source, **FORM)
    assert node_names(result.model) == ["point_svd_in", "point_svd_out", "relu", "wide"]
    onnx.checker.check_model(result.model, full_check=True)
    assert list(result.model.graph.input) == list(model.graph.input)
    assert list(result.model.graph.output) == list(model.graph.output)
    # Nothing that was handed in has changed.
    assert model.SerializeToString() == before
    assert (tmp_path / "in.onnx").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx"]
    if kind == "graph":
        assert gs.export_onnx(source.copy()).SerializeToString() == graph_before


def test_the_result_is_not_the_source(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    result = oc.compress(model, **FORM)
    result.model.graph.node[2].op_type = "Sigmoid"
    del result.model.graph.initializer[:]
    assert model.SerializeToString() == before


def test_parts_of_a_result(model: onnx.ModelProto) -> None:
    result = oc.compress(model, **FORM)
    assert isinstance(result, oc.Result)
    assert [c.site.node for c in result.plan.chosen] == ["point"]
    assert all(isinstance(c, oc.Candidate) for c in result.plan.chosen)
    assert result.report["version"] == 1
    assert result.report["plan"] == result.plan.to_dict()
    assert result.verdict.ok
    assert [(p.key, p.value) for p in result.model.metadata_props] == [("who", "me")]


@pytest.mark.parametrize("form", ["text", "options", "instance"])
def test_passes_in_every_form(model: onnx.ModelProto, form: str) -> None:
    given: dict[str, Any] = {
        "text": "tucker2:rank=2x3",
        "options": oc.use("tucker2", rank="2x3"),
        "instance": type(oc.use("tucker2"))(rank="2x3"),  # type: ignore[call-arg]
    }
    result = oc.compress(model, passes=[given[form]], gate=False)
    (chosen,) = result.plan.chosen
    assert (chosen.setting.rank_out, chosen.setting.rank_in) == (2, 3)


def arrays(count: int = 20) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((count, 4, 5, 7)).astype(np.float32)


def as_file(folder: Path) -> Path:
    np.save(folder / "data.npy", arrays())
    return folder / "data.npy"


@pytest.mark.parametrize(
    "make",
    [
        lambda _: arrays(),
        lambda _: {"x": arrays()},
        as_file,
        lambda folder: str(as_file(folder)),
    ],
    ids=["array", "mapping", "path", "text"],
)
def test_data(model: onnx.ModelProto, tmp_path: Path, make: Callable[[Path], Any]) -> None:
    data = make(tmp_path)
    before = arrays().tobytes()
    result = oc.compress(model, data=data, min_snr=-100.0, **FORM)
    assert result.report["accuracy"]["verified"] is True
    assert result.report["data"]["calibration"]["samples"] == 18
    assert result.report["data"]["verdict"]["samples"] == 2
    if isinstance(data, dict):
        assert data["x"].tobytes() == before


def test_evaluation_data_decides(model: onnx.ModelProto) -> None:
    result = oc.compress(model, eval_data=arrays(7), min_snr=20.0, **FORM)
    assert result.report["data"]["calibration"] is None
    assert result.report["data"]["verdict"]["samples"] == 7
    with pytest.raises(oc.BoundError, match="dB") as caught:
        oc.compress(model, eval_data=arrays(7), min_snr=20.0, passes=["tucker2:rank=1"], gate=False)
    assert caught.value.report is not None
    assert caught.value.report["ok"] is False
    assert caught.value.exit_code == 1


def test_the_seed_decides_what_is_held_out(model: onnx.ModelProto) -> None:
    def held_out(seed: int) -> str:
        result = oc.compress(model, data=arrays(), min_snr=-100.0, seed=seed, **FORM)
        return str(result.report["data"]["verdict"]["fingerprint"])

    assert held_out(1) == held_out(1)
    assert held_out(1) != held_out(2)


@pytest.mark.parametrize("shapes", [{"x": (3, 4, 5, 7)}, {"x": [3, 4, 5, 7]}, ["x:3,4,5,7"]])
def test_shapes(model: onnx.ModelProto, shapes: Any) -> None:
    report = oc.compress(model, shapes=shapes, **FORM).report
    assert report["model"]["sizes"] == {"x": [3, 4, 5, 7]}
    assert report["before"]["macs"] == 3 * 35 * (8 * 4 + 6 * 8 * 9)


@pytest.mark.parametrize("providers", ["cpu", ("cpu",), ["cpu"], " cpu "])
def test_providers(model: onnx.ModelProto, providers: Any) -> None:
    report = oc.compress(model, providers=providers, threads=1, **FORM).report
    assert report["environment"]["providers"] == ["cpu"]
    assert report["environment"]["threads"] == 1


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"passes": ["nobody"]}, oc.UsageError, 2),
        ({"passes": []}, oc.UsageError, 2),
        ({"passes": ["svd"], "target": {"speed": 0.5}}, oc.UsageError, 2),
        ({"passes": ["svd"], "target": {"macs": 2.0}}, oc.UsageError, 2),
        ({"passes": ["svd"], "max_drop": -1.0}, oc.UsageError, 2),
        ({"passes": ["svd"], "seed": -1}, oc.UsageError, 2),
        ({"passes": ["svd"], "threads": 0}, oc.UsageError, 2),
        ({"passes": ["svd"], "threads": -1}, oc.UsageError, 2),
        ({"passes": ["svd"], "exclude": ["("]}, oc.UsageError, 2),
        ({"passes": ["svd"], "providers": "tpu"}, oc.UsageError, 2),
        ({"passes": ["svd"], "shapes": {"z": (1,)}}, oc.UsageError, 2),
        ({"passes": ["svd"], "plan": "nowhere.json"}, oc.UsageError, 2),
        ({"recipe_name": "nobody"}, oc.UsageError, 2),
        ({"passes": ["svd"], "data": {"z": arrays()}}, oc.DataError, 4),
        ({"passes": ["svd"], "data": "nowhere.npz"}, oc.DataError, 4),
        ({"passes": ["svd"], "data": arrays()[:, :3]}, oc.DataError, 4),
        ({"passes": ["tucker2:rank=1"], "target": {"macs": 1e-6}}, oc.BoundError, 1),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_errors(
    model: onnx.ModelProto, options: dict[str, Any], error: type[Exception], code: int
) -> None:
    with pytest.raises(error) as caught:
        oc.compress(model, gate=False, **options)
    assert isinstance(caught.value, oc.OnnxCompressError)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [b"", b"nonsense", "nowhere.onnx", io.BytesIO(b"")])
def test_bad_sources(source: Any) -> None:
    with pytest.raises(oc.ModelError):
        oc.compress(source, **FORM)


@pytest.mark.parametrize("source", [None, 7, io.StringIO("text")])
def test_what_is_no_source(source: Any) -> None:
    with pytest.raises((TypeError, oc.OnnxCompressError)):
        oc.compress(source, **FORM)


@pytest.mark.parametrize("place", ["elsewhere", "beside"])
def test_external_data_that_was_not_loaded(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The proto alone does not hold its weights, and whatever lies in this folder is not them."""
    folder = tmp_path / "home"
    folder.mkdir()
    onnx.save_model(
        model, folder / "in.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    light = onnx.load(folder / "in.onnx", load_external_data=False)
    before = light.SerializeToString()
    monkeypatch.chdir(folder if place == "beside" else tmp_path)
    with pytest.raises(oc.ModelError):
        oc.compress(light, **FORM)
    assert light.SerializeToString() == before
    assert oc.compress(folder / "in.onnx", **FORM).verdict.ok


def test_names() -> None:
    assert set(oc.__all__) <= set(dir(oc))
    for name in oc.__all__:
        assert getattr(oc, name).__name__ == name
    with pytest.raises(AttributeError, match=r"'onnxcompress'.*'squeeze'"):
        oc.squeeze  # noqa: B018


def test_importing_is_light() -> None:
    heavy = "{'numpy', 'onnx', 'onnxruntime', 'onnx_graphsurgeon', 'scipy', 'click', 'rich'}"
    source = f"""
import sys
before = set(sys.modules)
import onnxcompress
assert not {heavy} & (set(sys.modules) - before), sorted(set(sys.modules) - before)
import onnxcompress.errors
onnxcompress.UsageError
assert not {heavy} & (set(sys.modules) - before), sorted(set(sys.modules) - before)
onnxcompress.compress
assert 'onnxruntime' in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


def test_saliency(nets, tmp_path):
    """From arrays and from files the same scores, in the order of the layers."""
    text = """net (float[N, 2, 4, 3] x) => (float[N, 3] y) {
        [one] a = Conv (x, w1)
        [act] b = Relu (a)
        [pool] p = GlobalAveragePool (b)
        [flat] f = Flatten (p)
        [fc] y = Gemm (f, w2) }"""
    model = nets.build(text, w1=(5, 2, 2, 2), w2=(5, 3))
    samples = {**nets.samples(model, 6), "y": np.arange(6) % 3}
    found = oc.saliency(model, samples, criteria=["taylor"], reference="weight", threads=1)
    assert list(found.scores) == ["taylor", "weight"]
    filters = onnx.numpy_helper.to_array(model.graph.initializer[0])
    norms = np.sqrt(np.square(filters).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(found.scores["weight"]["one"], norms, rtol=1e-6)
    onnx.save(model, tmp_path / "in.onnx")
    np.savez(tmp_path / "in.npz", **samples)
    again = oc.saliency(
        tmp_path / "in.onnx",
        tmp_path / "in.npz",
        criteria=["taylor"],
        reference="weight",
        threads=1,
    )
    for layer, values in found.scores["taylor"].items():
        np.testing.assert_array_equal(again.scores["taylor"][layer], values)
    with pytest.raises(oc.UsageError, match="no criterion 'tailor'"):
        oc.saliency(model, samples, criteria=["tailor"])
