"""The table of layer timings: what is measured once is not measured again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onnxcompress.latency import table as table_module
from onnxcompress.latency.interleave import Timing
from onnxcompress.latency.table import (
    LatencyTable,
    LayerTiming,
    default_table_path,
    random_inputs,
)
from onnxcompress.runtime import Execution

ONE = Execution(threads=1)


class Stopwatch:
    """Stands in for the measurement: notes what is asked, answers with round numbers."""

    def __init__(self):
        self.calls: list[list[object]] = []

    def __call__(self, models, feeds, execution, *, budget):
        self.calls.append(list(models))
        return [Timing(((10.0 * (i + 1),), (20.0 * (i + 1),))) for i in range(len(models))]


@pytest.fixture
def stopwatch(monkeypatch):
    stopwatch = Stopwatch()
    monkeypatch.setattr(table_module, "interleaved", stopwatch)
    monkeypatch.setattr(table_module, "device_name", lambda _: "cpu:test")
    return stopwatch


@pytest.fixture
def layer(kit):
    def make(width=5, *, name="dense", seed=1, inner=3):
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name=name)]
        constants = {"w": kit.whole((inner, width), seed=seed)}
        inputs, outputs = [kit.value("x", (2, inner))], [kit.value("y", (2, width))]
        return kit.model(nodes, inputs, outputs, constants)

    return make


def test_a_pair_is_measured_once(stopwatch, layer):
    table = LatencyTable(None, ONE)
    first = table.compare(layer(5), [layer(4)])
    assert first == [LayerTiming((10.0, 20.0), (20.0, 40.0))]
    assert table.compare(layer(5), [layer(4)]) == first
    assert (len(stopwatch.calls), table.measured) == (1, 1)


def test_names_and_values_hit_the_same_entry(stopwatch, layer):
    table = LatencyTable(None, ONE)
    table.compare(layer(5), [layer(4)])
    table.compare(layer(5, name="other", seed=9), [layer(4, name="third", seed=7)])
    assert len(stopwatch.calls) == 1


def test_only_what_is_new_is_measured(stopwatch, layer):
    table = LatencyTable(None, ONE)
    original = layer(5)
    table.compare(original, [layer(4)])
    results = table.compare(original, [layer(3), layer(4), layer(2)])
    assert [len(models) for models in stopwatch.calls] == [2, 3]
    assert stopwatch.calls[1] == [original, layer(3), layer(2)]
    # Each answer belongs to its candidate, in the order asked.
    assert [r.candidate_ms for r in results] == [(20.0, 40.0), (20.0, 40.0), (30.0, 60.0)]
    assert table.measured == 3


def test_another_structure_is_another_entry(stopwatch, layer):
    table = LatencyTable(None, ONE)
    table.compare(layer(5), [layer(4)])
    table.compare(layer(6), [layer(4)])
    table.compare(layer(5, inner=7), [layer(4, inner=7)])
    # Original and candidate are not interchangeable.
    table.compare(layer(4), [layer(5)])
    assert len(stopwatch.calls) == 4


@pytest.mark.parametrize(("calm", "calls"), [(2, 2), (3, 3), (9, 3)])
def test_what_varies_is_measured_again(layer, monkeypatch, calm, calls):
    """Rounds add up until the ratio is known closely, or three times have not been enough."""
    made = []

    def timed(models, *_arguments, **_options):
        made.append(models)
        other = (5.0,) * 8 if len(made) >= calm else (2.0, 9.0)
        return [Timing(tuple((10.0,) for _ in other)), Timing(tuple((ms,) for ms in other))]

    monkeypatch.setattr(table_module, "interleaved", timed)
    (timing,) = LatencyTable(None, ONE).compare(layer(5), [layer(4)])
    assert len(made) == calls
    assert len(timing.original_ms) == len(timing.candidate_ms)
    assert timing.candidate_ms[:2] == (2.0, 9.0)
    assert timing.settled == (calm < 9)


def test_what_is_known_closely_is_left_alone(layer, monkeypatch):
    """Only those that vary are measured again, beside the original of the same rounds."""
    made = []

    def timed(models, *_arguments, **_options):
        made.append(len(models))
        number = len(made)
        answers = [(10.0 * number, 10.0 * number)] + [(5.0, 5.0)] * (len(models) - 1)
        if number == 1:
            answers[2] = (1.0, 9.0)
        return [Timing(tuple((ms,) for ms in answer)) for answer in answers]

    monkeypatch.setattr(table_module, "interleaved", timed)
    calm, other, last = LatencyTable(None, ONE).compare(layer(5), [layer(4), layer(3), layer(2)])
    assert made == [4, 2, 2]
    assert calm == last == LayerTiming((10.0, 10.0), (5.0, 5.0))
    assert other.original_ms == (10.0, 10.0, 20.0, 20.0, 30.0, 30.0)
    assert other.candidate_ms == (1.0, 9.0, 5.0, 5.0, 5.0, 5.0)


def test_no_candidates(stopwatch, layer):
    assert LatencyTable(None, ONE).compare(layer(5), []) == []
    assert stopwatch.calls == []


def test_entries_survive_in_the_file(stopwatch, layer, tmp_path):
    path = tmp_path / "deep" / "latency.json"
    first = LatencyTable(path, ONE).compare(layer(5), [layer(4)])
    again = LatencyTable(path, ONE)
    assert again.compare(layer(5), [layer(4)]) == first
    assert (len(stopwatch.calls), again.measured, again.notes) == (1, 0, [])
    assert [p.name for p in path.parent.iterdir()] == ["latency.json"]


def test_new_entries_join_the_old_ones_in_the_file(stopwatch, layer, tmp_path):
    path = tmp_path / "latency.json"
    LatencyTable(path, ONE).compare(layer(5), [layer(4)])
    LatencyTable(path, ONE).compare(layer(5), [layer(3)])
    third = LatencyTable(path, ONE)
    third.compare(layer(5), [layer(4), layer(3)])
    assert (len(stopwatch.calls), third.measured) == (2, 0)


CONTEXTS = {
    "threads": lambda _: replace(ONE, threads=2),
    "provider": lambda _: replace(ONE, providers=("cuda", "cpu")),
    "order": lambda _: replace(ONE, providers=("cpu", "cuda")),
    "device": lambda m: m.setattr(table_module, "device_name", lambda _: "cpu:other"),
    "version": lambda m: m.setattr(onnxruntime, "__version__", "0.0.1"),
}


@pytest.mark.parametrize("change", CONTEXTS.values(), ids=CONTEXTS)
def test_timings_of_another_setting_do_not_count(stopwatch, layer, tmp_path, monkeypatch, change):
    path = tmp_path / "latency.json"
    LatencyTable(path, ONE).compare(layer(5), [layer(4)])
    other = change(monkeypatch) or ONE
    LatencyTable(path, other).compare(layer(5), [layer(4)])
    assert len(stopwatch.calls) == 2
    # Both are in the file now.
    assert len(json.loads(path.read_text())["entries"]) == 2


ENTRY = {"original_ms": [1.0, 2.0], "candidate_ms": [0.5, 1.0]}
DAMAGED = {
    "not json": "{",
    "empty": "",
    "not utf-8": b"\xff\xfe\x00",
    "a list": "[]",
    "a number": "3",
    "no format": json.dumps({"entries": {}}),
    "another format": json.dumps({"format": 999, "entries": {}}),
    "no entries": json.dumps({"format": 1}),
    "entries a list": json.dumps({"format": 1, "entries": [ENTRY]}),
    "entry a list": json.dumps({"format": 1, "entries": {"k": [1, 2]}}),
    "rounds do not pair up": json.dumps(
        {"format": 1, "entries": {"k": ENTRY | {"candidate_ms": [1.0]}}}
    ),
    "rounds missing": json.dumps({"format": 1, "entries": {"k": {"original_ms": [1.0]}}}),
    "no rounds": json.dumps(
        {"format": 1, "entries": {"k": {"original_ms": [], "candidate_ms": []}}}
    ),
    "words": json.dumps(
        {"format": 1, "entries": {"k": {"original_ms": ["a"], "candidate_ms": ["b"]}}}
    ),
    "null": json.dumps(
        {"format": 1, "entries": {"k": {"original_ms": [None], "candidate_ms": [1.0]}}}
    ),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_file_is_noted_and_rewritten(stopwatch, layer, tmp_path, content):
    path = tmp_path / "latency.json"
    # The damage lies in the very entry that will be asked for.
    LatencyTable(path, ONE).compare(layer(5), [layer(4)])
    (key,) = json.loads(path.read_text())["entries"]
    stopwatch.calls.clear()
    if isinstance(content, str):
        path.write_text(content.replace('"k"', json.dumps(key)))
    else:
        path.write_bytes(content)
    table = LatencyTable(path, ONE)
    (note,) = table.notes
    assert "is unusable" in note
    assert "\n" not in note
    (timing,) = table.compare(layer(5), [layer(4)])
    assert timing.ratio == 2.0
    assert len(stopwatch.calls) == 1
    assert LatencyTable(path, ONE).notes == []
    assert list(json.loads(path.read_text())["entries"]) == [key]


@pytest.mark.parametrize("kind", ["below a file", "a folder"])
def test_path_that_cannot_be_written_is_noted(stopwatch, layer, tmp_path, kind):
    if kind == "a folder":
        path = tmp_path / "latency.json"
        path.mkdir()
    else:
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "latency.json"
    table = LatencyTable(path, ONE)
    first = table.compare(layer(5), [layer(4)])
    assert "cannot be written" in table.notes[-1]
    # The table goes on in memory, says so once, and leaves no temporary file.
    assert table.compare(layer(5), [layer(4), layer(3)])[0] == first[0]
    assert sum("cannot be written" in note for note in table.notes) == 1
    assert len(stopwatch.calls) == 2
    assert not list(tmp_path.rglob("*.tmp"))


def test_real_measurement(layer):
    table = LatencyTable(None, ONE)
    (timing,) = table.compare(layer(5), [layer(4)])
    # A layer whose interval is still wide is timed again, in rounds of seven.
    assert len(timing.original_ms) == len(timing.candidate_ms)
    assert len(timing.original_ms) in range(7, 1_000, 7)
    assert min(*timing.original_ms, *timing.candidate_ms) > 0
    assert table.measured == 1


def test_random_inputs(kit):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")]
    kinds = TensorProto.FLOAT16
    inputs = [kit.value("x", (200, 300), kinds), kit.value("w", (300, 5), kinds)]
    model = kit.model(nodes, inputs, [kit.value("y", (200, 5), kinds)])
    feeds = random_inputs(model)
    assert {k: (v.shape, v.dtype) for k, v in feeds.items()} == {
        "x": ((200, 300), np.float16),
        "w": ((300, 5), np.float16),
    }
    for name, values in random_inputs(model).items():
        np.testing.assert_array_equal(values, feeds[name])
    assert not np.array_equal(feeds["x"][:5, :300].T, feeds["w"])


def test_default_path(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_table_path() == tmp_path / "onnxcompress" / "latency.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_table_path() == tmp_path / "home" / ".cache" / "onnxcompress" / "latency.json"
