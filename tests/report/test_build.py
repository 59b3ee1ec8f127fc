"""The report: the documented keys, strict JSON, and a reason for every layer left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress as oc
from onnxcompress.embedded import embedded
from onnxcompress.report.build import json_safe
from onnxcompress.report.write import write_json

TOP = {"version", "model", "before", "after", "layers", "refusals", "plan", "environment", "drop"}
MEASURES = {"params", "macs", "file_bytes", "peak_memory_bytes", "latency_ms", "metric"}
LATENCY = {"p50", "p95", "ci95", "runs"}
METRIC = {"name", "value", "ci95", "n"}
DROP = {"points", "ci95", "method"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    import onnxcompress.latency.interleave as interleave

    brief = interleave.Budget(rounds=2, seconds=0.0, min_runs=1, warmup_runs=1)
    monkeypatch.setattr(interleave, "Budget", lambda **_options: brief)
    monkeypatch.setattr("onnxcompress.verify.verdict.peak_memory_bytes", lambda *_: 4321)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def strict(report: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The report as another program reads it."""

    def reject(text: str) -> None:
        pytest.fail(f"{text} is not JSON")

    path = folder / "report.json"
    write_json(report, path)
    read: dict[str, Any] = json.loads(path.read_text(), parse_constant=reject)
    return read


def check_measures(measures: dict[str, Any], *, metric: bool) -> None:
    assert measures.keys() >= MEASURES
    assert measures["latency_ms"].keys() >= LATENCY
    low, high = measures["latency_ms"]["ci95"]
    assert low <= high
    assert 0 < measures["latency_ms"]["p50"] <= measures["latency_ms"]["p95"]
    for key in ("params", "macs", "file_bytes"):
        assert isinstance(measures[key], int)
    assert measures["peak_memory_bytes"] == 4321
    assert (measures["metric"] is not None) is metric
    if metric:
        assert measures["metric"].keys() >= METRIC
        assert len(measures["metric"]["ci95"]) == 2


@pytest.fixture
def digits() -> dict[str, np.ndarray]:
    with np.load(embedded("digits_test.npz")) as arrays:
        return {key: arrays[key][:120] for key in arrays.files}


def test_with_data(digits: dict[str, np.ndarray], tmp_path: Path) -> None:
    source = embedded("digits_cnn.onnx")
    result = oc.compress(
        source,
        data={"x": digits["x"]},
        eval_data=digits,
        target={"macs": 0.7},
        gate=False,
        max_drop=100.0,
        seed=7,
        threads=1,
    )
    report = strict(result.report, tmp_path)
    assert report.keys() >= TOP
    assert report["version"] == 1
    check_measures(report["before"], metric=True)
    check_measures(report["after"], metric=True)
    assert report["before"]["metric"]["name"] == "top1"
    assert report["before"]["metric"]["n"] == 120
    assert report["drop"].keys() >= DROP
    assert report["drop"]["method"] == "tango"
    before, after = (report[when]["metric"]["value"] for when in ("before", "after"))
    assert report["drop"]["points"] == pytest.approx(100 * (before - after))
    assert report["before"]["file_bytes"] == source.stat().st_size
    assert report["after"]["file_bytes"] == result.model.ByteSize()
    assert report["plan"] == json.loads(result.plan.to_json())
    assert report["environment"]["seed"] == 7
    assert report["environment"]["threads"] == 1
    assert report["environment"]["providers"] == ["cpu"]
    assert {"onnxruntime", "onnx", "numpy", "python", "device"} <= report["environment"].keys()
    assert report["model"]["name"] == "digits_cnn.onnx"


def test_without_data(tmp_path: Path) -> None:
    """A network against itself has an infinite signal-to-noise ratio; there is no metric."""
    result = oc.compress(embedded("digits_cnn.onnx"), passes=["svd:rank=full"], gate=False)
    report = strict(result.report, tmp_path)
    check_measures(report["before"], metric=False)
    check_measures(report["after"], metric=False)
    assert report["drop"] is None
    assert report["accuracy"]["verified"] is False
    assert "not verified" in report["accuracy"]["words"]


KINDS = """
<ir_version: 8, opset_import: ["" : 17]>
kinds (float[1, 6, 10, 12] x, float[6, 6, 3, 3] given) => (float[1, 8, 10, 12] y)
{
  [plain] a = Conv <pads = [1, 1, 1, 1]> (x, w_plain)
  [depthwise] b = Conv <pads = [1, 1, 1, 1], group = 6> (a, w_depth)
  [point] c = Conv (b, w_point)
  [dynamic] d = Conv <pads = [1, 1, 1, 1]> (c, given)
  [zeros] e = Conv <pads = [1, 1, 1, 1]> (d, w_zeros)
  [excluded] f = Conv <pads = [1, 1, 1, 1]> (e, w_excluded)
  [transposed] g = ConvTranspose <pads = [1, 1, 1, 1]> (f, w_trans)
  [last] y = Conv <pads = [1, 1, 1, 1]> (g, w_last)
}
"""
"""One layer of every kind that is left alone, each for another reason, and three that are not."""

BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
branches (float[1, 6, 10, 12] x) => (float[1, 8, 10, 12] y)
{
  [asks] h = ReduceMax <keepdims = 0> (x)
  [test] i = Greater (h, limit)
  [choice] j = If (i) <
    then_branch = then () => (float[1, 6, 10, 12] k)
      { [inner] k = Conv <pads = [1, 1, 1, 1]> (x, w_inner) },
    else_branch = other () => (float[1, 6, 10, 12] l) { [pass_on] l = Identity (x) }
  >
  [last] y = Conv <pads = [1, 1, 1, 1]> (j, w_last)
}
"""


def parsed(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {
        "w_plain": (6, 6, 3, 3), "w_depth": (6, 1, 3, 3), "w_point": (6, 6, 1, 1),
        "w_zeros": (6, 6, 3, 3), "w_excluded": (6, 6, 3, 3), "w_trans": (6, 6, 3, 3),
        "w_inner": (6, 6, 3, 3), "w_last": (8, 6, 3, 3), "limit": (),
    }  # fmt: skip
    for name, shape in shapes.items():
        if name in text:
            values = generator.standard_normal(shape) * (name not in {"w_zeros", "limit"}) / 6
            array = np.asarray(values, dtype=np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def test_every_untouched_layer_has_a_reason() -> None:
    passes = ["svd:rank=3", "tucker2:rank=2"]
    result = oc.compress(parsed(KINDS), passes=passes, exclude=["^excl"], gate=False)
    rows = {row["node"]: row for row in result.report["layers"]}
    assert {name for name, row in rows.items() if row["pass"]} == {"plain", "point", "last"}
    reasons = {name: row["reason"] for name, row in rows.items() if not row["pass"]}
    assert reasons.keys() == {"depthwise", "dynamic", "zeros", "excluded", "transposed"}
    assert "each channel is convolved by itself" in reasons["depthwise"]
    assert "'given'" in reasons["dynamic"]
    assert "all zero" in reasons["zeros"]
    assert "excluded by the user" in reasons["excluded"]
    assert "transposed convolution" in reasons["transposed"]


def test_no_pass_for_a_kind_is_a_reason_too() -> None:
    result = oc.compress(parsed(KINDS), passes=["svd:rank=3"], gate=False)
    rows = {row["node"]: row for row in result.report["layers"]}
    assert {name for name, row in rows.items() if row["pass"]} == {"point"}
    assert all(row["reason"] for row in rows.values() if not row["pass"])


def test_layers_in_subgraphs_are_listed() -> None:
    result = oc.compress(parsed(BRANCHES), passes=["tucker2:rank=2"], gate=False)
    rows = {row["node"]: row for row in result.report["layers"]}
    assert {name for name, row in rows.items() if row["pass"]} == {"last"}
    assert rows["inner"]["reason"]


def test_rewritten_layers_say_what_was_done() -> None:
    result = oc.compress(parsed(KINDS), passes=["tucker2:rank=2"], gate=False)
    row = next(row for row in result.report["layers"] if row["node"] == "last")
    # 6 -> 2 -> 2 -> 8 channels on 10 x 12 positions.
    after = 6 * 2 + 2 * 2 * 9 + 2 * 8
    assert row["setting"] == {
        "rank_out": 2,
        "rank_in": 2,
        "triple": False,
        "metric": "weights",
    }
    assert (row["macs"], row["params"]) == (120 * 8 * 6 * 9, 8 * 6 * 9)
    assert (row["macs_after"], row["params_after"]) == (120 * after, after)
    assert 0 < row["damage"] < 1


def test_refusals_name_pass_node_and_reason() -> None:
    report = oc.compress(parsed(KINDS), passes=["tucker2:rank=2"], gate=False).report
    found = {(r["pass"], r["node"]) for r in report["refusals"]}
    assert found == {
        ("tucker2", name) for name in ("depthwise", "point", "dynamic", "zeros", "transposed")
    }
    assert all(r["reason"] for r in report["refusals"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.5), 0.5),
        (np.int32(3), 3),
        (float("nan"), None),
        ({"a": (1, [float("nan")])}, {"a": [1, [None]]}),
        (True, True),
        ("text", "text"),
        (None, None),
    ],
)
def test_json_safe(value: object, expected: object) -> None:
    found = json_safe(value)
    assert found == expected
    assert type(found) is type(expected)
    json.dumps(found, allow_nan=False)
