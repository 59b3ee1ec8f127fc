"""Exact rewrites before everything lossy: timed in the network, counted, replayed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnxcompress as oc
from onnxcompress import groundwork
from onnxcompress.config import Config
from onnxcompress.errors import BoundError, UsageError
from onnxcompress.latency.interleave import Timing
from onnxcompress.pipeline import run
from onnxcompress.plan.registry import parse_pass
from onnxcompress.runtime import Execution

# A shortcut of Slice and Pad (dearer, and quicker between convolutions); a channel that nobody
# reads (cheaper); three 1x1 layers in a row, of which the first two make room for the third.
TEXT = """net (float[N, 3, 8, 10] x) => (float[N, 6, 4, 5] y)
    <int64[2] at = {0, 0}, int64[2] to = {8, 10}, int64[2] axes = {2, 3}, int64[2] by = {2, 2},
     int64[8] pads = {0,1,0,0,0,1,0,0}> {
    [one] a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    [bend] b = Relu (a)
    [branch] c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (b, w2)
    [bend2] r = Relu (c)
    [first] d = Conv (r, w3)
    [second] e = Conv (d, w4)
    [third] f = Conv (e, w5)
    [slice] g = Slice (b, at, to, axes, by)
    [pad] h = Pad (g, pads)
    [sum] y = Add (f, h) }"""


@pytest.fixture
def model(nets: Any, kit: Any) -> onnx.ModelProto:
    shapes = {
        "w1": (4, 3, 3, 3), "w2": (8, 4, 3, 3), "w3": (7, 8, 1, 1), "w4": (9, 7, 1, 1),
        "w5": (6, 9, 1, 1),
    }  # fmt: skip
    # Ones and zeros of either sign: no sum of products is ever rounded, in whatever order.
    weights = {n: kit.whole(s, seed=at, limit=1) for at, (n, s) in enumerate(shapes.items())}
    weights["w2"][5] = 0.0
    made: onnx.ModelProto = nets.build(TEXT, **weights)
    return made


def config(*passes: str, **options: Any) -> Config:
    values = {"passes": tuple(map(parse_pass, passes)), "execution": Execution(threads=1)}
    return Config(**(values | options))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, quick: None) -> dict[str, float]:
    """Networks take as long as is written here, by operator; whatever else, nothing."""
    costs = {"Slice": 5.0, "Pad": 5.0, "Conv": 1.0}

    def interleaved(models: Any, *_arguments: Any, **_options: Any) -> list[Timing]:
        times = [sum(costs.get(n.op_type, 0.0) for n in m.graph.node) for m in models]
        return [Timing(((ms,),) * 7) for ms in times]

    monkeypatch.setattr(groundwork, "interleaved", interleaved)
    return costs


def same(kit: Any, one: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """Bit for bit."""
    kit.assert_same(one, other, {"x": kit.whole((5, 3, 8, 10), seed=3, limit=1)})


def operators(model: onnx.ModelProto) -> list[str]:
    return sorted(node.op_type for node in model.graph.node)


def test_rounds(model: onnx.ModelProto, kit: Any, timed: Any) -> None:
    """Two of three layers in a row are merged at first, then that with the third."""
    result = run(model, config("exact"))
    same(kit, model, result.model)
    assert operators(result.model) == ["Add", "Conv", "Conv", "Conv", "Conv", "Relu", "Relu"]
    kinds = [sorted(c.setting.kind for c in one) for one in result.plan.first]
    assert kinds == [["linear", "shortcut"], ["linear"]]
    assert result.plan.chosen == ()
    proofs = result.report["self_check"]
    assert [p["pass"] for p in proofs] == ["exact", "exact"]
    assert all(p["relative_error"] < 1e-5 for p in proofs)


def test_what_is_slower_in_the_network_stays(model: onnx.ModelProto, timed: Any) -> None:
    timed.update(Slice=0.1, Pad=0.1)
    result = run(model, config("exact"))
    assert {"Slice", "Pad"} <= set(operators(result.model))
    reasons = {r.node: r.reason for r in result.plan.refusals}
    assert reasons["pad"].startswith("no faster: with this the whole network takes 1.")


def test_nothing_is_faster(model: onnx.ModelProto, timed: Any) -> None:
    timed.update(Slice=0.0, Pad=0.0, Conv=0.0, Add=1.0)
    with pytest.raises(BoundError, match="nothing could be gained"):
        run(model, config("exact"))


def test_counted_targets_take_what_costs_less(
    model: onnx.ModelProto, kit: Any, quick: None
) -> None:
    """The shortcut and the merged layers cost parameters or MACs; the idle channel does not."""
    result = run(model, config("exact", targets={"params": 0.99}))
    (chosen,) = (c for one in result.plan.first for c in one if c.setting.kind == "channels")
    assert chosen.setting.gone == (5,)
    assert "shortcut" not in {c.setting.kind for one in result.plan.first for c in one}
    same(kit, model, result.model)


def test_other_passes_see_what_is_left(model: onnx.ModelProto, timed: Any) -> None:
    """A merged layer is a layer like any other."""
    result = run(model, config("exact", "svd:rank=2", gate=False))
    assert [c.site.pass_name for c in result.plan.chosen] == ["svd"] * len(result.plan.chosen)
    assert result.plan.chosen


def test_replay(model: onnx.ModelProto, timed: Any, tmp_path: Path) -> None:
    first = run(model, config("exact"))
    path = tmp_path / "plan.json"
    path.write_text(first.plan.to_json())
    again = run(model, Config(passes=(), plan=path, execution=Execution(threads=1)))
    assert again.model.SerializeToString() == first.model.SerializeToString()
    assert again.plan.to_dict() == first.plan.to_dict()


def test_replay_on_weights_of_which_it_does_not_hold(
    model: onnx.ModelProto, quick: None, tmp_path: Path
) -> None:
    """A channel that was idle before training is not any more."""
    first = run(model, config("exact", targets={"params": 0.99}))
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(first.plan.to_dict()))
    w2 = next(t for t in model.graph.initializer if t.name == "w2")
    values = onnx.numpy_helper.to_array(w2).copy()
    values[5] = 1.0
    w2.CopyFrom(onnx.numpy_helper.from_array(values, "w2"))
    with pytest.raises(UsageError, match="does not hold for these weights"):
        run(model, Config(passes=(), plan=path, execution=Execution(threads=1)))


def test_replay_of_what_is_excluded(model: onnx.ModelProto, timed: Any, tmp_path: Path) -> None:
    first = run(model, config("exact"))
    path = tmp_path / "plan.json"
    path.write_text(first.plan.to_json())
    replayed = Config(passes=(), plan=path, execution=Execution(threads=1))
    with pytest.raises(UsageError, match="--exclude keeps"):
        run(model, replace(replayed, exclude=("slice",)))


def test_from_python(model: onnx.ModelProto, timed: Any) -> None:
    result = oc.compress(model, passes=["exact"], threads=1)
    assert [c["node"] for one in result.report["plan"]["first"] for c in one]
