"""Plans that meet targets: by measuring, and again if need be; branches where time is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress import pipeline
from onnxcompress.config import Config
from onnxcompress.errors import BoundError
from onnxcompress.latency.interleave import Timing
from onnxcompress.pipeline import Result, run
from onnxcompress.plan.registry import parse_pass
from onnxcompress.plan.rivals import Rival, Tournament, Way
from onnxcompress.progress import Progress
from onnxcompress.runtime import Execution


def job(
    model: onnx.ModelProto,
    target: dict[str, float],
    log: Progress | None = None,
    then: str | None = None,
) -> Result:
    x = np.random.default_rng(1).standard_normal((200, 3, 8, 8)).astype(np.float32)
    passes = tuple(map(parse_pass, ("lnr:round_to=2", "tucker2:round_to=2")))
    execution = Execution(threads=1)
    config = Config(
        passes=passes,
        execution=execution,
        targets=target,
        max_drop=100.0,
        data={"x": x},
        then=then,
    )
    return run(model, config, log)


def branches(result: Result) -> list[str]:
    return [c.site.node for c in result.plan.chosen if getattr(c.setting, "mean", ())]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, quick: None) -> dict[str, Callable[..., float]]:
    """Networks take a millisecond per convolution and one per 10,000 weights of theirs.

    `verdict` turns that into what the verdict measures, `layers` is what so many convolutions take.
    """
    how: dict[str, Callable[..., float]] = {"verdict": lambda ms: ms, "layers": float}

    def taken(model: onnx.ModelProto) -> float:
        sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer}
        layers = [n for n in model.graph.node if n.op_type == "Conv"]
        weights = sum(sizes.get(n.input[1], 0) for n in layers)
        return how["layers"](len(layers)) + weights / 1e4 + 0.1

    def layered(models: Any, *_arguments: Any, **_options: Any) -> list[Timing]:
        return [Timing(((taken(m),),) * 3) for m in models]

    def judged(models: Any, *_arguments: Any, **_options: Any) -> list[Timing]:
        first = taken(models[0])
        return [
            Timing(((first if at == 0 else how["verdict"](taken(m)),),) * 3)
            for at, m in enumerate(models)
        ]

    monkeypatch.setattr("onnxcompress.latency.table.interleaved", layered)
    monkeypatch.setattr("onnxcompress.remainder.interleaved", layered)
    monkeypatch.setattr("onnxcompress.verify.speed.interleaved", judged)
    return how


@pytest.mark.parametrize("target", [{"macs": 0.8}, {"params": 0.7}, {"macs": 0.6, "size": 0.9}])
def test_counted_targets_keep_branches(
    two_blocks: onnx.ModelProto, quick: None, target: dict[str, float]
) -> None:
    result = job(two_blocks, target)
    assert branches(result) == []
    remaining = result.report["remaining"]
    assert all(remaining[kind] <= fraction for kind, fraction in target.items())
    assert any(remaining[kind] > fraction - 0.03 for kind, fraction in target.items())


def test_a_counted_target_that_takes_branches(two_blocks: onnx.ModelProto, quick: None) -> None:
    """Layers of one channel do not get there, and what lies between them is a branch."""
    with pytest.raises(BoundError):
        job(two_blocks, {"params": 0.0001})


def test_milliseconds_take_branches(two_blocks: onnx.ModelProto, clock: Any) -> None:
    """Two convolutions less are what a narrower layer can never save here."""
    result = job(two_blocks, {"latency": 0.65})
    assert len(branches(result)) == 1
    assert result.report["remaining"]["latency"] <= 0.65
    assert any("errors of plans after brief repair: no branch " in n for n in result.plan.notes)
    assert any("measured before repair: latency 0." in n for n in result.plan.notes)
    assert len(branches(job(two_blocks, {"latency": 0.3}))) == 2


def test_the_best_way_is_gone_with_other_numbers_of_branches(
    two_blocks: onnx.ModelProto, clock: Any
) -> None:
    """Layers take as long as they are large here: `lnr` alone is best, and keeps branches."""
    clock["layers"] = lambda count: 1e-3 * count
    result = job(two_blocks, {"latency": 0.7})
    found = re.search(
        r"; lnr alone ([\d.]+).*; 1 branch, lnr alone ([\d.]+)", result.plan.notes[-1]
    )
    assert found is not None
    assert float(found[1]) < float(found[2])
    assert branches(result) == []


def test_out_of_reach(two_blocks: onnx.ModelProto, clock: Any) -> None:
    with pytest.raises(BoundError, match=r"latency is at 0\.\d+ of the original, above the 0.1"):
        job(two_blocks, {"latency": 0.1})


def test_the_verdict_finds_it_slower(
    two_blocks: onnx.ModelProto, clock: Any, monkeypatch: pytest.MonkeyPatch, log: Any
) -> None:
    """A quarter slower than the plan was told: planned again, by what was found."""
    clock["verdict"] = lambda ms: 1.25 * ms
    result = job(two_blocks, {"latency": 0.7}, log)
    assert any(note.startswith("attempt 1: latency is at 0.7") for note in log.notes)
    assert result.report["remaining"]["latency"] <= 0.7


def test_what_lost_before_may_win_where_more_is_asked(
    two_blocks: onnx.ModelProto, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first verdict finds a fifth too much: what saves enough for that takes part again."""
    again: list[Way] = []
    genuine = Tournament.enter

    def enter(self: Tournament, way: Way) -> Rival:
        made = genuine(self, way)
        if seen and way not in again:
            again.append(way)
        return made

    seen: list[Any] = []
    admitted: list[Rival] = []
    admit = Tournament.admit

    def watched(self: Tournament, rival: Rival) -> None:
        admitted.append(rival)
        admit(self, rival)

    def ratio(ms: float) -> float:
        seen.append(ms)
        return ms * (1.2 if len(seen) == 1 else 1.0)

    clock["verdict"] = ratio
    monkeypatch.setattr(Tournament, "enter", enter)
    monkeypatch.setattr(Tournament, "admit", watched)
    result = job(two_blocks, {"latency": 0.7})
    assert again
    assert admitted
    assert all(rival.choice.meets for rival in admitted)
    assert result.report["remaining"]["latency"] <= 0.7


def test_the_verdict_finds_it_much_faster(
    two_blocks: onnx.ModelProto, clock: Any, monkeypatch: pytest.MonkeyPatch, log: Any
) -> None:
    """Half of what the plan was told: planned again once, and the one that loses less counts."""
    clock["verdict"] = lambda ms: 0.5 * ms
    attempts = []
    genuine = pipeline._attempt

    def attempt(*arguments: Any, **options: Any) -> Any:
        attempts.append(genuine(*arguments, **options))
        return attempts[-1]

    monkeypatch.setattr(pipeline, "_attempt", attempt)
    result = job(two_blocks, {"latency": 0.7}, log)
    assert result.report["remaining"]["latency"] <= 0.65
    assert len(attempts) <= 2
    assert [n for n in log.notes if "far below" in n] == ["attempt 1: " + FAR] * (len(attempts) - 1)


@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.5), ("int8", 0.25)])
def test_the_precision_alone_meets_a_target(
    two_blocks: onnx.ModelProto, quick: None, precision: str, share: float
) -> None:
    """Nothing lossy is done where the conversion saves enough; scales and nodes take their part."""
    result = job(two_blocks, {"size": share + 0.25}, then=precision)
    assert result.plan.chosen == ()
    assert result.plan.then == precision
    assert share <= result.report["remaining"]["size"] <= share + 0.25
    assert result.report["then"]["precision"] == precision
    assert result.report["then"]["before_conversion"]["drop"]["points"] == 0.0


def test_targets_hold_for_what_is_written(two_blocks: onnx.ModelProto, quick: None) -> None:
    """Half of the bytes go by precision, the rest of what is asked by rewrites."""
    result = job(two_blocks, {"size": 0.4}, then="fp16")
    assert result.plan.chosen
    assert 0.35 <= result.report["remaining"]["size"] <= 0.4
    assert result.report["remaining"]["params"] > 0.6


FAR = "far below what was asked, planned again"


def with_defaults(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every weight is an input with a default, too, as old exporters write it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        copy.graph.input.append(value)
    return copy


@pytest.fixture
def slow_defaults(monkeypatch: pytest.MonkeyPatch, quick: None) -> dict[str, float]:
    """Networks whose weights are inputs take so many times as long."""
    how = {"times": 3.0}

    def taken(model: onnx.ModelProto) -> float:
        layers = [n for n in model.graph.node if n.op_type == "Conv"]
        return (len(layers) + 0.1) * (how["times"] if len(model.graph.input) > 1 else 1.0)

    def timed(models: Any, *_arguments: Any, **_options: Any) -> list[Timing]:
        return [Timing(((taken(m),),) * 3) for m in models]

    for place in ("latency.table", "remainder", "verify.speed"):
        monkeypatch.setattr(f"onnxcompress.{place}.interleaved", timed)
    return how


def test_what_the_canonical_form_saves_is_not_paid_for_again(
    two_blocks: onnx.ModelProto, slow_defaults: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_arguments: Any) -> Any:
        raise AssertionError("no pass need be asked")

    monkeypatch.setattr("onnxcompress.planning.collect", nothing)
    result = job(with_defaults(two_blocks), {"latency": 0.5})
    assert result.plan.empty
    assert "the targets are met without a lossy rewrite" in result.plan.notes
    reasons = {row["reason"] for row in result.report["layers"]}
    assert reasons == {"the targets are met without a lossy rewrite"}
    assert result.report["lossless_latency_ratio"] == pytest.approx(1 / 3)
    assert result.report["remaining"]["latency"] == pytest.approx(1 / 3)
    assert len(result.model.graph.input) == 1


def test_a_verdict_that_misses_what_seemed_met_has_passes_asked(
    two_blocks: onnx.ModelProto, slow_defaults: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canonical form is timed at a third, and judged at 0.4: layers go after all."""

    def judged(models: Any, *_arguments: Any, **_options: Any) -> list[Timing]:
        layers = [sum(n.op_type == "Conv" for n in model.graph.node) + 0.1 for model in models]
        return [Timing(((3.0 * layers[0],),) * 3), *(Timing(((1.2 * n,),) * 3) for n in layers[1:])]

    monkeypatch.setattr("onnxcompress.verify.speed.interleaved", judged)
    result = job(with_defaults(two_blocks), {"latency": 0.36})
    assert result.plan.chosen
    assert "the targets are met without a lossy rewrite" not in result.plan.notes
    assert result.report["remaining"]["latency"] <= 0.36


def test_the_canonical_form_alone_is_a_gain_if_it_is_quicker(
    two_blocks: onnx.ModelProto, slow_defaults: dict[str, float]
) -> None:
    config = Config(
        passes=(parse_pass("tucker2"),), execution=Execution(threads=1), exclude=(".*",)
    )
    result = run(with_defaults(two_blocks), config)
    assert result.plan.empty
    assert result.report["lossless_latency_ratio"] == pytest.approx(1 / 3)
    slow_defaults["times"] = 1.01
    with pytest.raises(BoundError, match="nothing could be gained"):
        run(with_defaults(two_blocks), config)
