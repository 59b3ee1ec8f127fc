"""However memory splits the work of the oracle, and in whatever order ablations are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxcompress.calibrate.ablation as module
import onnxcompress.calibrate.sample_batches as batches_module

TAPS = {"a": 1, "b": 1, "e": 1, "f": 1, "g": 1, "i": 1}
ABLATIONS: list[dict[str, tuple[int, ...]]] = [
    *({"i": (channel,)} for channel in (5, 0, 3)),
    *({"a": (channel,)} for channel in (2, 0)),
    {"f": (1,), "g": (4,)},
    {"e": (3,)},
    {"i": (1, 2)},
    {"b": (0,), "e": (2,)},
    {"a": (1, 3)},
]
# Another batch size, or other tensors that are kept, may change what is fused: float32 rounding.
CLOSE = 2e-5


class Told:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def stage(self, name: str) -> None:
        raise AssertionError("not a stage of its own")

    def step(self, done: int, total: int) -> None:
        self.steps.append((done, total))

    def note(self, words: str) -> None:
        raise AssertionError("nothing to tell")


class Watched:
    """Counts runs of the whole network, and what is kept of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: list[list[str]] = []
        genuine = module.tapped

        def counted(model: Any, names: Any) -> Any:
            # The answers alone may be asked for besides.
            if set(names) - {"y"}:
                self.kept.append(list(names))
            return genuine(model, names)

        monkeypatch.setattr(module, "tapped", counted)


def measured(truth: Any, nets: Any, count: int = 7, **options: Any) -> Any:
    model = truth.classifier(nets)
    return truth.measured(model, nets.samples(model, count), np.arange(count), **options)


@pytest.mark.parametrize("batch", [1, 2, 3, 64])
@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_batches_and_chunks(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch, batch: int, chunk: int
) -> None:
    """No more samples at once than a chunk holds, but whole batches; every sample counts once."""
    whole = measured(truth, nets).sensitivity.ablate(TAPS, ABLATIONS)
    watched, told = Watched(monkeypatch), Told()
    monkeypatch.setattr(module, "_BATCH", batch)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    found = measured(truth, nets, progress=told).sensitivity.ablate(TAPS, ABLATIONS)
    np.testing.assert_allclose(found, whole, rtol=0, atol=CLOSE)
    assert len(np.unique(np.round(whole, 3))) == len(ABLATIONS), "all differ, so order shows"
    size = min(batch, 7)
    at_once = size * max(1, chunk // size)
    assert len(watched.kept) == -(-7 // at_once)
    assert told.steps[-1] == (7 * len(ABLATIONS), 7 * len(ABLATIONS))
    assert told.steps == sorted(set(told.steps))


def test_little_memory_takes_smaller_batches(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(truth, nets).sensitivity.ablate(TAPS, ABLATIONS)
    monkeypatch.setattr(module, "_BATCH_BYTES", 1)
    monkeypatch.setattr(module, "_CHUNK", 1)
    watched = Watched(monkeypatch)
    found = measured(truth, nets).sensitivity.ablate(TAPS, ABLATIONS)
    np.testing.assert_allclose(found, whole, rtol=0, atol=CLOSE)
    assert len(watched.kept) == 7


@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize(("channels", "count"), [(0, 5), (13, 3), (17, 2), (30, 1)])
def test_waves(
    truth: Any,
    nets: Any,
    monkeypatch: pytest.MonkeyPatch,
    samples: int,
    channels: int,
    count: int,
) -> None:
    """What is kept at once fits into memory, unless a single cut needs more.

    The five cuts keep i (9 channels), a (4), f and g (2 and 7), e (4) and, for b with e, b (4).
    """
    whole = measured(truth, nets, samples).sensitivity.ablate(TAPS, ABLATIONS)
    # Of 5 x 6 positions in float32, for a chunk of four samples, beside inputs and answers; with
    # no room at all, a chunk is a single batch.
    inputs = nets.samples(truth.classifier(nets), 1)
    beside = 4 * (sum(value.size for value in inputs.values()) + 8)
    room = 4 * (4 * 30 * channels + beside) if channels else 0
    monkeypatch.setattr(module, "_KEPT_BYTES", room)
    monkeypatch.setattr(module, "_CHUNK", 4)
    monkeypatch.setattr(module, "_BATCH", 2)
    watched, told = Watched(monkeypatch), Told()
    found = measured(truth, nets, samples, progress=told).sensitivity.ablate(TAPS, ABLATIONS)
    np.testing.assert_allclose(found, whole, rtol=0, atol=CLOSE)
    assert told.steps[-1] == (samples * len(ABLATIONS),) * 2
    assert told.steps == sorted(set(told.steps))
    waves = list(dict.fromkeys(tuple(kept) for kept in watched.kept))
    assert len(waves) == count
    assert len(watched.kept) == count * -(-samples // (4 if channels else min(2, samples)))
    widths = {"i": 9, "a": 4, "f": 2, "g": 7, "e": 4, "b": 4}
    assert sorted(name for wave in waves for name in wave) == sorted([*widths, *["y"] * count])
    for wave in waves:
        held = sum(widths[name] for name in wave if name != "y")
        assert held <= channels or set(wave) - {"y"} in [{"i"}, {"a"}, {"f", "g"}, {"e"}, {"b"}]


def test_other_orders(truth: Any, nets: Any) -> None:
    """Every ablation has its own answer wherever it stands, and twice the same one."""
    job = measured(truth, nets)
    whole = job.sensitivity.ablate(TAPS, ABLATIONS)
    order = np.random.default_rng(3).permutation(np.repeat(np.arange(len(ABLATIONS)), 2))
    found = job.sensitivity.ablate(TAPS, [ABLATIONS[number] for number in order])
    assert np.array_equal(found, whole[order])
    turned = [dict(reversed(ablation.items())) for ablation in ABLATIONS]
    assert np.array_equal(job.sensitivity.ablate(dict(reversed(TAPS.items())), turned), whole)
    alone = [job.sensitivity.ablate(TAPS, [ablation])[0] for ablation in ABLATIONS]
    np.testing.assert_allclose(alone, whole, rtol=0, atol=CLOSE)


def test_threads(truth: Any, nets: Any) -> None:
    one, two = (
        measured(truth, nets, threads=t).sensitivity.ablate(TAPS, ABLATIONS) for t in (1, 2)
    )
    np.testing.assert_allclose(two, one, rtol=0, atol=CLOSE)


def test_the_gradients_batches_are_not_those_of_the_oracle(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers belong to samples by row, however either of them is batched."""
    whole = measured(truth, nets).sensitivity.ablate(TAPS, ABLATIONS)
    monkeypatch.setattr(batches_module, "_BATCH", 2)
    monkeypatch.setattr(module, "_BATCH", 3)
    found = measured(truth, nets).sensitivity.ablate(TAPS, ABLATIONS)
    np.testing.assert_allclose(found, whole, rtol=0, atol=CLOSE)
