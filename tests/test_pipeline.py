"""The stages of a job: their order, what is retried, and what is refused at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress import pipeline
from onnxcompress.config import Config
from onnxcompress.errors import BoundError, DataError, OnnxCompressError, UsageError
from onnxcompress.pipeline import plan_only, run
from onnxcompress.plan.registry import parse_pass


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    import onnxcompress.latency.interleave as interleave

    brief = interleave.Budget(rounds=2, seconds=0.0, min_runs=1, warmup_runs=1)
    monkeypatch.setattr(interleave, "Budget", lambda **_options: brief)
    monkeypatch.setattr("onnxcompress.verify.verdict.peak_memory_bytes", lambda *_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def model() -> onnx.ModelProto:
    """Two 3x3 convolutions whose spectra fall by a quarter per channel: every rank counts."""
    made = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17]>
    two (float[N, 16, 5, 6] x) => (float[N, 24, 5, 6] y)
    {
      [first] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
      [second] y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a, w2)
    }
    """)
    generator = np.random.default_rng(12)
    for name, shape in {"w1": (16, 16, 3, 3), "w2": (24, 16, 3, 3)}.items():
        outward, inward = (
            np.linalg.qr(generator.standard_normal((n, n)))[0] * 0.75 ** np.arange(n)
            for n in shape[:2]
        )
        core = generator.standard_normal(shape)
        values = np.einsum("ta,abkl,sb->tskl", outward, core, inward).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return made


def config(*passes: str, **options: Any) -> Config:
    chosen = tuple(parse_pass(text) for text in passes or ("tucker2",))
    return Config(passes=chosen, gate=options.pop("gate", False), **options)


def data(count: int = 30) -> dict[str, Any]:
    values = np.random.default_rng(1).standard_normal((count, 16, 5, 6))
    return {"x": values.astype(np.float32)}


class Log:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def step(self, done: int, total: int) -> None:
        assert 0 <= done <= total

    def note(self, words: str) -> None:
        assert "\n" not in words
        self.notes.append(words)


def test_the_order_of_the_stages(model: onnx.ModelProto) -> None:
    log = Log()
    run(model, config("tucker2:rank=8"), log)
    expected = ["load", "analyse", "plan", "rewrite", "verify accuracy", "verify latency"]
    assert [stage for stage in log.stages if stage in expected] == expected


def test_a_plan_alone_rewrites_nothing_and_times_nothing(
    model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        pytest.fail("too far")

    for name in ("rewrite", "verify", "judge_accuracy", "unverified_accuracy"):
        monkeypatch.setattr(pipeline, name, refuse)
    before = model.SerializeToString()
    plan, prepared = plan_only(model, config("tucker2:rank=8"))
    assert [c.site.node for c in plan.chosen] == ["first", "second"]
    assert prepared.inputs.verdict is None
    assert model.SerializeToString() == before


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """Calls of one of the pipeline's stages."""
    calls: list[Any] = []
    genuine = getattr(pipeline, name)

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return genuine(*arguments, **options)

    monkeypatch.setattr(pipeline, name, call)
    return calls


def test_no_attempt_is_made_twice(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where everything is taken already, no other plan can help."""
    plans = counted(monkeypatch, "rewrite")
    with pytest.raises(BoundError, match="size"):
        run(model, config("tucker2:rank=8", targets={"size": 0.01}))
    chosen = [tuple(c.site.node for c in arguments[1]) for arguments in plans]
    assert chosen == [("first", "second")] * 1


def test_a_size_that_would_be_missed_narrowly_is_met(
    model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and attributes of the new nodes count, too, which no candidate knows of."""
    before = len(model.SerializeToString())
    plans = counted(monkeypatch, "rewrite")
    first = run(model, config("tucker2", targets={"size": 0.6})).plan
    saved = sum(c.before.weight_bytes - c.after.weight_bytes for c in first.chosen)
    plans.clear()
    # By weights alone the same plan meets this target, with one byte to spare.
    fraction = (before - saved + 1) / before
    result = run(model, config("tucker2", targets={"size": fraction}))
    assert result.model.ByteSize() <= fraction * before
    chosen = [arguments[1] for arguments in plans]
    assert chosen == [result.plan.chosen]
    assert result.plan.chosen != first.chosen


def test_accuracy_tightens_the_plan_until_it_holds(
    model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict's inputs are harder than those that choices were made on."""
    genuine, plans = pipeline.judge_accuracy, counted(monkeypatch, "rewrite")

    def strict(*arguments: Any, **options: Any) -> Any:
        found = genuine(*arguments, **options)
        return found if len(plans) >= 3 else replace(found, ok=False, words="not yet")

    monkeypatch.setattr(pipeline, "judge_accuracy", strict)
    log = Log()
    result = run(model, config("tucker2", data=data(), eval_data=data(9), min_snr=10.0), log)
    assert len(plans) == 3
    assert [note for note in log.notes if "attempt" in note] == [
        "attempt 1: not yet",
        "attempt 2: not yet",
    ]
    spent = [sum(candidate.damage for candidate in arguments[1]) for arguments in plans]
    assert spent == sorted(spent, reverse=True)
    assert spent[0] > spent[-1] > 0
    assert result.report["accuracy"]["consulted"] == 3
    assert result.report["after"]["metric"]["name"] == "snr"
    assert result.report["after"]["metric"]["value"] >= 10.0


def test_the_bound_is_for_the_verdicts_data(model: onnx.ModelProto) -> None:
    result = run(model, config("tucker2", data=data(), eval_data=data(9), min_snr=20.0))
    assert result.report["after"]["metric"]["value"] >= 20.0
    assert result.report["after"]["metric"]["n"] == 9
    assert result.report["remaining"]["macs"] < 1.0


def test_a_bound_that_nothing_meets(model: onnx.ModelProto) -> None:
    with pytest.raises(BoundError) as caught:
        run(model, config("tucker2", data=data(), eval_data=data(9), min_snr=500.0))
    assert "nothing could be gained" in str(caught.value) or caught.value.report is not None


def test_slower_is_refused_when_the_gate_is_on(
    model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxcompress.latency.interleave import Timing

    def layers(models: list[Any], *_arguments: Any, **_options: Any) -> list[Timing]:
        return [Timing(((5.0 - i,),) * 4) for i in range(len(models))]

    def network(models: list[Any], *_arguments: Any, **_options: Any) -> list[Timing]:
        return [Timing(((5.0 + i, 5.0 + i),) * 4) for i in range(len(models))]

    monkeypatch.setattr("onnxcompress.latency.table.interleaved", layers)
    monkeypatch.setattr("onnxcompress.verify.speed.interleaved", network)
    with pytest.raises(BoundError, match=r"slower than the original: latency ratio 1\.2") as caught:
        run(model, config("tucker2:rank=8", gate=True))
    report = caught.value.report
    assert report is not None
    assert report["latency_ratio"]["slower"] is True
    # With the gate off the same is written, and says so.
    assert run(model, config("tucker2:rank=8")).report["latency_ratio"]["slower"] is True


@pytest.mark.parametrize("name", ["top1", "top5"])
def test_labels_are_missed_before_the_work(
    model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(pipeline, "rewrite", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(DataError, match=f"{name} needs labels"):
        run(model, config("tucker2:rank=8", data=data(), metric=name))


@pytest.mark.parametrize("job", [run, plan_only])
def test_an_unknown_metric_is_refused_without_data_too(
    model: onnx.ModelProto, job: Callable[..., Any]
) -> None:
    with pytest.raises(UsageError, match="unknown metric"):
        job(model, config("tucker2:rank=8", metric="top2"))


def broken(values: float) -> Callable[..., None]:
    def act(_self: Any, candidate: Any, edit: Any) -> None:
        import onnx_graphsurgeon as gs

        old = edit.node(candidate.site.node)
        weight = edit.constant("bad", np.full(old.inputs[1].shape, values, np.float32))
        edit.replace(old, [gs.Node("Conv", "new", dict(old.attrs), [old.inputs[0], weight])])

    return act


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_pass_that_makes_nonsense(
    model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Weights that are not finite, or that make the outputs so, are never handed over."""
    job = config("tucker2:rank=8", exclude=("second",))
    monkeypatch.setattr(type(job.passes[0]), "rewrite", broken(value))
    with pytest.raises(OnnxCompressError) as caught:
        run(model, job)
    assert "\n" not in str(caught.value)


def test_everything_rolled_back_is_nothing_gained(
    model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> None:
        raise ValueError("not today")

    job = config("tucker2:rank=8")
    monkeypatch.setattr(type(job.passes[0]), "rewrite", fail)
    with pytest.raises(BoundError, match=r"nothing could be gained.*not today"):
        run(model, job)


def test_two_runs_give_the_same_bytes(model: onnx.ModelProto) -> None:
    first, second = (
        run(model, config("tucker2", data=data(), min_snr=10.0, seed=3)).model for _ in "ab"
    )
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )
