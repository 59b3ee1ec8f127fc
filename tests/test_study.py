"""The study of all criteria on one network: agreement, what is left out, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.sensitivity import Measured
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.calibrate.preprocess_text import parse_preprocess
from onnxcompress.calibrate.spec import load_dataset
from onnxcompress.embedded import embedded
from onnxcompress.errors import GradientError, ModelError, UsageError
from onnxcompress.plan.saliency.criteria import CRITERIA
from onnxcompress.runtime import Execution
from onnxcompress.study import Study, correlate, spearman, study

Array = np.ndarray
NAN = float("nan")


def average_ranks(values: list[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def slow_spearman(one: list[float], other: list[float]) -> float:
    """Pearson's correlation of ranks."""
    ranks = [average_ranks(line) for line in (one, other)]
    means = [sum(line) / len(line) for line in ranks]
    first, second = (
        [rank - mean for rank in line] for line, mean in zip(ranks, means, strict=True)
    )
    both = sum(a * b for a, b in zip(first, second, strict=True))
    spread = sum(a * a for a in first) * sum(b * b for b in second)
    return both / math.sqrt(spread) if spread else NAN


GENERATOR = np.random.default_rng(6)
RANKED: dict[str, tuple[Array, Array]] = {
    "no ties": (GENERATOR.standard_normal(20), GENERATOR.standard_normal(20)),
    "ties in one": (GENERATOR.integers(0, 4, 20), GENERATOR.standard_normal(20)),
    "ties in both": (GENERATOR.integers(0, 4, 20), GENERATOR.integers(0, 3, 20)),
    "half dead": (np.maximum(GENERATOR.standard_normal(20), 0), GENERATOR.standard_normal(20)),
    "two": (np.array([1.0, 3.0]), np.array([7.0, 2.0])),
}


@pytest.mark.parametrize(("one", "other"), RANKED.values(), ids=RANKED.keys())
def test_spearman(one: Array, other: Array) -> None:
    one, other = one.astype(float), other.astype(float)
    expected = slow_spearman(one.tolist(), other.tolist())
    assert spearman(one, other) == pytest.approx(expected, abs=1e-12)
    assert spearman(other, one) == pytest.approx(expected, abs=1e-12)
    assert spearman(np.exp(one), -other) == pytest.approx(-expected, abs=1e-12)


def test_spearman_without_ties_is_the_formula_of_the_paper() -> None:
    """1 - 6 / (N (N^2 - 1)) sum d^2."""
    one, other = RANKED["no ties"]
    places = zip(average_ranks(one.tolist()), average_ranks(other.tolist()), strict=True)
    distance = sum((a - b) ** 2 for a, b in places)
    assert spearman(one, other) == pytest.approx(1 - 6 * distance / (20 * 399), abs=1e-12)


@pytest.mark.parametrize(
    ("one", "other"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [0, 0, 0]), ([4], [5])]
)
@pytest.mark.filterwarnings("error")
def test_nothing_to_rank(one: list[float], other: list[float]) -> None:
    """And no warning about it."""
    assert math.isnan(spearman(np.array(one, float), np.array(other, float)))


def test_correlation() -> None:
    """Per layer, over all channels, and after each layer of the criterion was divided by its norm.

    Layers of other scales, so that the three differ; a layer of equal scores is left out of means.
    """
    found = {
        "one": np.array([3.0, 1.0, 2.0, 5.0]),
        "two": np.array([300.0, 100.0, 250.0]),
        "flat": np.array([7.0, 7.0]),
    }
    reference = {
        "one": np.array([0.3, 0.2, 0.1, 0.4]),
        "two": np.array([0.5, 0.25, 0.1]),
        "flat": np.array([0.6, 0.7]),
    }
    got = correlate(found, reference)
    one = slow_spearman([3, 1, 2, 5], [0.3, 0.2, 0.1, 0.4])
    two = slow_spearman([300, 100, 250], [0.5, 0.25, 0.1])
    assert got.layers["one"] == pytest.approx(one, abs=1e-12)
    assert got.layers["two"] == pytest.approx(two, abs=1e-12)
    assert math.isnan(got.layers["flat"])
    assert got.mean == pytest.approx((one + two) / 2, abs=1e-12)
    assert got.worst == pytest.approx(min(one, two), abs=1e-12)
    joined = [float(v) for line in reference.values() for v in line]
    raw = [float(v) for line in found.values() for v in line]
    scaled = [
        float(v) / math.sqrt(sum(float(w) ** 2 for w in line))
        for line in found.values()
        for v in line
    ]
    assert got.all_layers == pytest.approx(slow_spearman(raw, joined), abs=1e-12)
    assert got.all_normalised == pytest.approx(slow_spearman(scaled, joined), abs=1e-12)
    assert len({got.mean, got.all_layers, got.all_normalised}) == 3


def test_no_layer_ranks_anything() -> None:
    got = correlate({"a": np.zeros(3)}, {"a": np.arange(3.0)})
    assert math.isnan(got.mean)
    assert math.isnan(got.worst)
    assert math.isnan(got.all_layers)


NET = """net (float[{batch}, 3, 5, 4] x) => (float[{batch}, 3] y) {{
    [one] a = Conv <kernel_shape = [3, 2]> (x, w1, b1)
    [r1] b = Relu (a)
    [two] c = Conv <kernel_shape = [1, 1]> (b, w2, b2)
    [r2] d = Relu (c)
    [mean] e = GlobalAveragePool (d)
    [flat] f = Flatten (e)
    [last] y = Gemm <transB = 1> (f, w3) }}"""
WEIGHTS: dict[str, Any] = {
    "w1": (6, 3, 3, 2), "b1": (6,), "w2": (5, 6, 1, 1), "b2": (5,), "w3": (3, 5),
}  # fmt: skip
PICTURE = """net (float[N, 3, 5, 4] x) => (float[N, 2, 3, 3] y) {
    [one] a = Conv <kernel_shape = [3, 2]> (x, w1, b1)
    [r1] b = Relu (a)
    [last] y = Conv <kernel_shape = [1, 1]> (b, w2) }"""
OPAQUE = NET.replace("[flat] f = Flatten (e)", "[odd] g = Hardmax <axis = 1> (e)"
                     "  [flat] f = Flatten (g)")  # fmt: skip

Run = Callable[..., Study]


@pytest.fixture(scope="module")
def run(nets: Any) -> Run:
    """`run(text, labelled=True, batch=None, seed=0, ...)` on 24 samples."""

    def call(text: str = NET, *, labelled: bool = False, batch: str = "N", **how: Any) -> Study:
        weights = WEIGHTS
        if "picture" in how.pop("kind", ""):
            weights = {"w1": (6, 3, 3, 2), "b1": (6,), "w2": (2, 6, 1, 1)}
        model = nets.build(text.format(batch=batch) if "{{" in text else text, 5, **weights)
        feeds = nets.samples(model, 24)
        if labelled:
            feeds["y"] = np.random.default_rng(2).integers(0, 3, 24)
        data = dataset_from_arrays(feeds, input_specs(model))
        return study(model, data, execution=Execution(threads=1), **how)

    return call


def same_scores(one: Study, other: Study) -> None:
    assert list(one.scores) == list(other.scores)
    for name, layers in one.scores.items():
        assert list(layers) == list(other.scores[name])
        for layer, line in layers.items():
            assert line.tobytes() == other.scores[name][layer].tobytes()


@pytest.mark.parametrize("labelled", [True, False])
def test_everything(run: Run, labelled: bool) -> None:
    """All criteria, each compared with the oracle; counts and what the loss was held to."""
    found = run(labelled=labelled)
    assert set(found.scores) == set(CRITERIA)
    assert found.reference == "oracle-abs"
    assert set(found.correlations) == set(CRITERIA) - {"oracle-abs"}
    assert found.refused == {}
    assert found.measured == Measured(24, 24, "labels" if labelled else "the network's own classes")
    reference = found.scores["oracle-abs"]
    for name, layers in found.scores.items():
        assert {layer: line.shape for layer, line in layers.items()} == {"one": (6,), "two": (5,)}
        if name == found.reference:
            continue
        for layer, line in layers.items():
            expected = slow_spearman(line.tolist(), reference[layer].tolist())
            got = found.correlations[name].layers[layer]
            assert got == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert found.fisher is not None
    assert set(found.fisher) == {"one", "two"}
    assert all(trace > 0.0 for trace in found.fisher.values())


def test_labels_make_a_difference(run: Run) -> None:
    one, other = run(labelled=True), run(labelled=False)
    for name in ("taylor", "oracle-abs", "mutual-information"):
        assert not np.allclose(one.scores[name]["one"], other.scores[name]["one"], rtol=1e-3)
    for name in ("weight", "activation-mean", "apoz", "random"):
        np.testing.assert_array_equal(one.scores[name]["one"], other.scores[name]["one"])


def test_chosen_criteria(run: Run) -> None:
    """Those alone, and the reference; asking twice changes nothing."""
    found = run(criteria=["taylor", "weight", "taylor"], reference="activation-std")
    assert list(found.scores) == ["taylor", "weight", "activation-std"]
    assert list(found.correlations) == ["taylor", "weight"]
    whole = run()
    for name in found.scores:
        np.testing.assert_array_equal(found.scores[name]["two"], whole.scores[name]["two"])
    line = found.scores["taylor"]["two"].tolist()
    expected = slow_spearman(line, found.scores["activation-std"]["two"].tolist())
    assert found.correlations["taylor"].layers["two"] == pytest.approx(expected, abs=1e-12)


def test_fewer_samples(run: Run) -> None:
    found = run(labelled=True, samples=10, ablated=4)
    assert found.measured == Measured(10, 4, "labels")
    whole = run(labelled=True)
    for name in ("taylor", "oracle-abs"):
        assert not np.allclose(found.scores[name]["one"], whole.scores[name]["one"], rtol=1e-3)
    assert run(samples=5, ablated=50).measured.ablated == 5


def test_excluded_layers(run: Run) -> None:
    found = run(exclude=["^one$"])
    assert all(list(layers) == ["two"] for layers in found.scores.values())
    with pytest.raises(UsageError, match="nowhere"):
        run(exclude=["nowhere"])
    with pytest.raises(ModelError, match="no layer has channels that may go"):
        run(exclude=["one", "two"])


def test_nothing_to_score(nets: Any) -> None:
    """With the reasons."""
    text = "net (float[N, 4] x) => (float[N, 3] y) { [only] y = MatMul (x, w) }"
    model = nets.build(text, w=(4, 3))
    data = dataset_from_arrays(nets.samples(model, 4), input_specs(model))
    with pytest.raises(ModelError, match=r"no layer has channels that may go \('only': .+\)"):
        study(model, data)


def test_the_same_seed(run: Run) -> None:
    """To the last bit; another seed draws other samples and other numbers."""
    same_scores(run(labelled=True, samples=10, seed=3), run(labelled=True, samples=10, seed=3))
    one, other = (run(labelled=True, samples=10, seed=seed) for seed in (3, 4))
    for name in ("random", "taylor", "oracle-abs", "obd"):
        assert not np.array_equal(one.scores[name]["one"], other.scores[name]["one"])


@pytest.mark.parametrize("fixed", ["4", "1"])
def test_a_fixed_batch(run: Run, fixed: str) -> None:
    """24 samples, four at a time: the same scores as with a free batch, up to rounding."""
    free, found = run(labelled=True), run(labelled=True, batch=fixed)
    assert set(found.scores) == set(CRITERIA)
    # What is drawn per sample: signs of obd belong to batches.
    for name in set(CRITERIA) - {"obd"}:
        for layer, line in free.scores[name].items():
            scale = np.abs(line).max()
            np.testing.assert_allclose(found.scores[name][layer], line, rtol=0, atol=1e-5 * scale)


def test_a_batch_that_does_not_divide(run: Run) -> None:
    """Of 24 samples in fives the last is filled up, or left out; nothing fails."""
    found = run(labelled=True, batch="5")
    assert set(found.scores) == set(CRITERIA)
    assert found.refused == {}


def test_no_classes(run: Run) -> None:
    """Everything but what needs a class."""
    found = run(PICTURE, kind="picture")
    assert set(found.scores) == set(CRITERIA) - {"mutual-information"}
    assert set(found.refused) == {"mutual-information"}
    assert "needs a class" in found.refused["mutual-information"]
    assert found.correlations["taylor-gate"].layers["one"] > 0.5
    with pytest.raises(UsageError, match="mutual-information"):
        run(PICTURE, kind="picture", criteria=["mutual-information"])


def test_no_adjoint(run: Run) -> None:
    """What needs gradients is refused with operator and node; no Fisher information."""
    found = run(OPAQUE)
    assert set(found.refused) == {"obd", "taylor", "taylor-gate"}
    assert all("Hardmax 'odd'" in reason for reason in found.refused.values())
    assert set(found.scores) == set(CRITERIA) - set(found.refused)
    assert found.fisher is None
    for how in ({"criteria": ["taylor"]}, {"reference": "taylor"}):
        with pytest.raises(GradientError, match="Hardmax 'odd'"):
            run(OPAQUE, **how)


@pytest.mark.parametrize("how", [{"criteria": ["taste"]}, {"reference": "taste"}])
def test_no_such_criterion(run: Run, how: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"'taste': give one of weight, .*taylor-gate"):
        run(**how)


def test_fisher_information(nets: Any) -> None:
    """One number y = sum of w max(0, a): the sum over positions of (dy/da / y)^2, averaged."""
    text = """net (float[N, 3, 3, 2] x) => (float[N, 1] y) {
        [one] a = Conv <kernel_shape = [1, 1]> (x, w1, b1)
        [r1] b = Relu (a)
        [flat] c = Flatten (b)
        [last] y = Gemm (c, w2, b2) }"""
    model = nets.build(text, w1=(4, 3, 1, 1), b1=(4,), w2=(24, 1), b2=np.float32([4.0]))
    feeds = nets.samples(model, 9)
    weights = {
        t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer
    }
    traces = []
    for sample in feeds["x"].astype(np.float64):
        a = np.einsum("oc,chw->ohw", weights["w1"][:, :, 0, 0], sample)
        a = (a + weights["b1"][:, None, None]).ravel()
        y = np.maximum(a, 0) @ weights["w2"][:, 0] + weights["b2"][0]
        traces.append(
            sum((w / y) ** 2 for w, at in zip(weights["w2"][:, 0], a, strict=True) if at > 0)
        )
    data = dataset_from_arrays(feeds, input_specs(model))
    found = study(model, data, criteria=["weight"]).fisher
    assert found is not None
    assert found["one"] == pytest.approx(sum(traces) / 9, rel=1e-5)


@pytest.mark.shared
def test_vgg_tiny(shared_folder: Path) -> None:
    """The tables of Molchanov et al. 2017 on a network and data of our own: 512 images."""
    model = onnx.load(embedded("vgg_tiny.onnx"))
    how = parse_preprocess("layout=nchw,color=gray,scale=1/255,mean=.2860,std=.3530")
    path = shared_folder / "data" / "fashion_mnist" / "fashion_train.npz"
    data = load_dataset(str(path), input_specs(model), preprocess=how)
    criteria = ["taylor", "taylor-gate", "apoz", "activation-mean", "weight"]
    found = study(model, data, criteria=criteria, samples=512, ablated=512)
    assert found.measured == Measured(512, 512, "labels")
    taylor, gate, apoz = (found.correlations[name] for name in ("taylor", "taylor-gate", "apoz"))
    assert taylor.mean >= 0.7
    assert taylor.all_normalised >= 0.8
    assert gate.all_layers >= 0.8
    assert apoz.mean < taylor.mean - 0.1
    assert apoz.all_normalised < taylor.all_normalised - 0.1
    # The mean over positions makes large maps look unimportant; the sum does not.
    assert taylor.all_layers < gate.all_layers
