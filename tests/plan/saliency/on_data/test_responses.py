"""Criteria from activations, value by value in float64; and what channels say about classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from onnxcompress.errors import UsageError
from onnxcompress.plan.saliency.criteria import CRITERIA
from onnxcompress.plan.saliency.responses import information_gain

Array = np.ndarray
NETWORKS = ["chain", "chain, equal extents", "residual", "dense", "swish", "number"]
# Networks run in float32 in the engine: a few dozen products of order one.
ROUNDED = 1e-5


def activation_mean(values: list[float]) -> float:
    return sum(values) / len(values)


def activation_std(values: list[float]) -> float:
    mean = activation_mean(values)
    return (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5


def apoz(values: list[float]) -> float:
    return sum(v > 0 for v in values) / len(values)


SLOW = {"activation-mean": activation_mean, "activation-std": activation_std, "apoz": apoz}


@pytest.mark.parametrize("gone", [False, True], ids=["whole", "some gone"])
@pytest.mark.parametrize("criterion", SLOW)
@pytest.mark.parametrize("name", NETWORKS)
def test_activations(case: Any, ask: Any, name: str, criterion: str, gone: bool) -> None:
    """35 samples are three batches, the last one short."""
    known = case(name, labelled=False, count=35)
    slow = known.active if gone else known.slow
    found = CRITERIA[criterion].score(ask(known.facts, known.removed if gone else None))
    assert set(found) == set(slow.taps)
    for layer, scores in found.items():
        expected = [SLOW[criterion](line.ravel().tolist()) for line in slow.z(layer)]
        assert len(set(expected)) > 1
        np.testing.assert_allclose(scores, expected, rtol=0, atol=ROUNDED * max(map(abs, expected)))
    for layer, channels in known.removed.items() if gone else ():
        assert (found[layer][list(channels)] == 0.0).all()


def quantile_bins(values: list[float], count: int = 16) -> list[int]:
    """Bins between the quantiles k / count (interpolated); equal values share a bin."""
    ranked = sorted(values)
    edges = set()
    for k in range(1, count):
        low, rest = divmod(k * (len(values) - 1), count)
        high = min(low + 1, len(values) - 1)
        edges.add(ranked[low] + (ranked[high] - ranked[low]) * rest / count)
    return [sum(value >= edge for edge in edges) for value in values]


def slow_entropy(symbols: Sequence[Any]) -> float:
    shares = [count / len(symbols) for count in Counter(symbols).values()]
    return -sum(p * log(p) for p in shares)


def slow_gain(values: list[float], classes: list[int]) -> float:
    """H(x) + H(y) - H(x, y) in nats."""
    bins = quantile_bins(values)
    both = list(zip(bins, classes, strict=True))
    return slow_entropy(bins) + slow_entropy(classes) - slow_entropy(both)


GENERATOR = np.random.default_rng(8)
# Values of one channel, by what is particular about them. 65 samples: 64 / 16 steps of 4, so that
# every quantile is itself a sample.
CHANNELS: dict[str, Array] = {
    "all different": GENERATOR.standard_normal(60),
    "quantiles that are samples": GENERATOR.standard_normal(65),
    "fewer samples than bins": GENERATOR.standard_normal(7),
    "one sample": GENERATOR.standard_normal(1),
    "many ties": GENERATOR.integers(0, 5, 60).astype(float),
    "mostly dead": np.maximum(GENERATOR.standard_normal(60) - 1.2, 0.0),
    "constant": np.full(60, 0.7),
    "dead": np.zeros(60),
    "two values": np.array([0.0, 1.0] * 30),
}


@pytest.mark.parametrize("values", CHANNELS.values(), ids=CHANNELS.keys())
@pytest.mark.parametrize("offset", [0, -3], ids=["", "other names of classes"])
def test_information_gain(values: Array, offset: int) -> None:
    """Three ways to the same: loops, scikit-learn, the engine."""
    classes = np.random.default_rng(1).integers(0, 4, len(values))
    # Half of them follow the values, so that there is something to gain.
    classes[::2] = (values[::2] > np.median(values)) + 2
    expected = slow_gain(values.tolist(), classes.tolist())
    other = mutual_info_score(classes, quantile_bins(values.tolist()))
    (found,) = information_gain(values[:, np.newaxis], 5 * classes + offset)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found == pytest.approx(other, abs=1e-12)
    if len(set(values.tolist())) == 1:
        assert abs(found) < 1e-14
    else:
        assert found > 0.05


def test_information_gain_has_known_ends() -> None:
    """All of H(y) where classes follow the values; nothing where they are independent of them."""
    classes = np.repeat(np.arange(4), 16)
    ordered = np.arange(64.0)
    independent = np.tile(np.arange(16.0), 4)
    found = information_gain(np.stack([ordered, -3 * ordered, independent], axis=1), classes)
    np.testing.assert_allclose(found, [log(4), log(4), 0.0], rtol=0, atol=1e-12)


def test_constant_channels_tie() -> None:
    """To the last bit, whatever their value: they are equally worthless."""
    classes = np.random.default_rng(0).integers(0, 7, 100)
    found = information_gain(np.tile([0.0, 0.3, -5.0, 1e9], (100, 1)), classes)
    assert len(set(found.tolist())) == 1


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "own answers"])
@pytest.mark.parametrize("gone", [False, True], ids=["whole", "some gone"])
@pytest.mark.parametrize("name", NETWORKS[:-1])
def test_mutual_information(case: Any, ask: Any, name: str, gone: bool, labelled: bool) -> None:
    """Of means over positions and the class; own answers are those before anything was gone."""
    known = case(name, labelled=labelled, count=70)
    slow = known.active if gone else known.slow
    found = CRITERIA["mutual-information"].score(ask(known.facts, known.removed if gone else None))
    assert set(found) == set(slow.taps)
    for layer, scores in found.items():
        expected = [
            slow_gain([sum(line) / len(line) for line in samples], slow.targets)
            for samples in slow.z(layer).tolist()
        ]
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-12)
        assert max(expected) > 0.1
    for layer, channels in known.removed.items() if gone else ():
        assert np.abs(found[layer][list(channels)]).max() < 1e-14


@pytest.mark.parametrize("name", ["number", "picture"])
def test_mutual_information_needs_classes(case: Any, ask: Any, name: str) -> None:
    with pytest.raises(UsageError, match="mutual-information needs a class"):
        CRITERIA["mutual-information"].score(ask(case(name, labelled=False).facts))


@pytest.mark.parametrize("criterion", [*SLOW, "mutual-information"])
def test_data_is_needed(nets: Any, case: Any, ask: Any, criterion: str) -> None:
    model = case("chain", labelled=False).slow.model
    with pytest.raises(UsageError, match="--data"):
        CRITERIA[criterion].score(ask(nets.facts(model)))
