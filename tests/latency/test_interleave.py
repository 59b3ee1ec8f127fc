"""Interleaved timing: order, counts, one live session at a time. No claim about any time."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
from onnx import helper

from onnxcompress.errors import ModelError
from onnxcompress.latency import interleave
from onnxcompress.latency.interleave import Budget, Timing, interleaved
from onnxcompress.runtime import Execution

ONE = Execution(threads=1)
BRIEF = Budget(rounds=4, seconds=0.0, min_runs=3, warmup_runs=2)


class Recorder:
    """Stands in for ONNX Runtime: notes every session, how many live at once, and every run."""

    def __init__(self):
        self.opened: list[bytes] = []
        self.alive = self.most = 0
        self.runs: list[tuple[bytes, object]] = []
        self.executions: set[Execution] = set()

    @contextmanager
    def open_session(self, model, execution):
        self.opened.append(model)
        self.executions.add(execution)
        self.alive += 1
        self.most = max(self.most, self.alive)
        try:
            yield _Session(self, model)
        finally:
            self.alive -= 1


class _Session:
    def __init__(self, recorder, model):
        self.recorder, self.model = recorder, model

    def runner(self, feeds):
        return lambda: self.recorder.runs.append((self.model, feeds))


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(interleave, "open_session", recorder.open_session)
    return recorder


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes forward by one second with every look at it."""
    ticks = itertools.count()
    monkeypatch.setattr(interleave.time, "perf_counter", lambda: float(next(ticks)))


def test_order_turns_around_from_round_to_round(recorder):
    interleaved([b"a", b"b", b"c"], {}, ONE, budget=BRIEF)
    assert recorder.opened == [b"a", b"b", b"c", b"c", b"b", b"a"] * 2


def test_one_session_lives_at_a_time(recorder):
    interleaved([b"a", b"b"], {}, ONE, budget=BRIEF)
    assert (recorder.most, recorder.alive) == (1, 0)


def test_a_session_is_given_back_when_a_run_fails(recorder, monkeypatch):
    def fail():
        raise ModelError("no")

    monkeypatch.setattr(_Session, "runner", lambda *_: fail)
    with pytest.raises(ModelError):
        interleaved([b"a", b"b"], {}, ONE, budget=BRIEF)
    assert recorder.alive == 0


def test_counts(recorder):
    timings = interleaved([b"a", b"b"], {}, ONE, budget=BRIEF)
    assert [[len(r) for r in timing.rounds] for timing in timings] == [[3] * 4] * 2
    # Warm-up runs come on top and are not counted.
    assert len(recorder.runs) == 2 * 4 * (3 + 2)


def test_samples_belong_to_their_model(recorder, monkeypatch):
    """Runs of b take ten times as long on a clock that only runs move."""
    now = [0.0]
    monkeypatch.setattr(interleave.time, "perf_counter", lambda: now[0])

    def runner(session, feeds):
        def once():
            now[0] += {b"a": 0.001, b"b": 0.01}[session.model]

        return once

    monkeypatch.setattr(_Session, "runner", runner)
    a, b = interleaved([b"a", b"b"], {}, ONE, budget=BRIEF)
    np.testing.assert_allclose(a.samples, 1.0, rtol=1e-9)
    np.testing.assert_allclose(b.samples, 10.0, rtol=1e-9)


def test_runs_go_on_until_the_time_is_up(recorder, clock):
    """Every look at the clock takes a second, and every run takes two looks."""
    (timing,) = interleaved(
        [b"a"], {}, ONE, budget=Budget(rounds=1, seconds=9.0, min_runs=1, warmup_runs=1)
    )
    # end = 9 s after the start; the k-th run stops 2k seconds after it: 2, 4, 6, 8, 10.
    assert timing.rounds == ((1000.0,) * 5,)
    # A third of the time for warming up: 2, 4.
    assert len(recorder.runs) == 5 + 2


def test_one_set_of_feeds_for_all_or_one_for_each(recorder):
    shared = {"x": np.zeros(1)}
    interleaved([b"a", b"b"], shared, ONE, budget=BRIEF)
    assert all(feeds is shared for _, feeds in recorder.runs)
    recorder.runs.clear()
    own = [{"x": np.zeros(1)}, {"z": np.ones(1)}]
    interleaved([b"a", b"b"], own, ONE, budget=BRIEF)
    assert all(feeds is own[0] for model, feeds in recorder.runs if model == b"a")
    assert all(feeds is own[1] for model, feeds in recorder.runs if model == b"b")


def test_execution_is_handed_on(recorder):
    interleaved([b"a"], {}, ONE, budget=BRIEF)
    assert recorder.executions == {ONE}


def test_progress(recorder):
    seen = []
    interleaved([b"a"], {}, ONE, budget=BRIEF, progress=lambda *step: seen.append(step))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_model_is_serialised_once(kit, recorder):
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    model = kit.model(nodes, [kit.value("x", (2,))], [kit.value("y", (2,))])
    interleaved([model, b"b"], {}, ONE, budget=BRIEF)
    first = [data for data in recorder.opened if data != b"b"]
    assert first == [model.SerializeToString()] * 4
    assert len({id(data) for data in first}) == 1


def test_real_sessions(kit):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")]
    constants = {"w": kit.whole((3, 5), seed=1)}
    model = kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 5))], constants)
    budget = Budget(rounds=2, seconds=0.0, min_runs=2, warmup_runs=1)
    timings = interleaved([model, model], {"x": kit.whole((2, 3), seed=2)}, ONE, budget=budget)
    for timing in timings:
        assert timing.samples.shape == (4,)
        assert np.all(timing.samples > 0)


def test_statistics_of_a_timing():
    timing = Timing(((1.0, 2.0, 9.0), (4.0, 3.0, 5.0, 100.0)))
    np.testing.assert_array_equal(timing.samples, [1, 2, 9, 4, 3, 5, 100])
    np.testing.assert_array_equal(timing.round_medians, [2.0, 4.5])
    assert timing.p50 == 4.0
    # Seven samples: 0.95 * 6 = 5.7 of the way, between 9 and 100.
    assert timing.p95 == pytest.approx(9 + 0.7 * 91, rel=1e-12)
