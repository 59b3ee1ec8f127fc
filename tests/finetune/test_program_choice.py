"""Programs chosen by the network's answers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from scipy.special import log_softmax

pytest.importorskip("torch", reason="no PyTorch: pip install 'onnxcompress[finetune]'")

from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.errors import DataError, ModelError
from onnxcompress.finetune.program_choice import choose_programs, chooser
from onnxcompress.kernels.gumbel import Schedule
from onnxcompress.kernels.induction import LayerPrograms, induce
from onnxcompress.kernels.search import vocabulary
from onnxcompress.runtime import Execution, open_session

WORDS = vocabulary(3, 1)


def with_kernels(model: onnx.ModelProto, name: str, kernels: np.ndarray) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensor = next(t for t in changed.graph.initializer if t.name == name)
    values = kernels.reshape(tuple(tensor.dims)).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    return changed


def answers(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    with open_session(model, Execution(threads=1)) as session:
        return np.asarray(session.run({"x": images})[0])


def spent(model: onnx.ModelProto, programs: LayerPrograms, data: Dataset, price: float) -> float:
    """What is minimised: divergence of the answers at temperature 4, and the price of the bits."""
    x = np.concatenate([feeds["x"] for feeds, _ in data.batches(64)])
    changed = with_kernels(model, "wc", programs.weights)
    one, other = (
        log_softmax(answers(each, x).astype(np.float64) / 4.0, axis=1) for each in (changed, model)
    )
    far = 16.0 * float((np.exp(other) * (other - one)).sum(axis=1).mean())
    return far + price * programs.bits / float(WORDS.bits[-1] * 36)


def test_programs_that_were_planted(teacher: onnx.ModelProto, data: Dataset) -> None:
    """From original kernels, which cost the price, the descent comes near what they are made of."""
    planted = induce(chooser(teacher, "c", WORDS).weight, WORDS, 3e-4)
    assert planted.shares().get("original", 0.0) < 0.2
    model, price = with_kernels(teacher, "wc", planted.weights), 0.03
    layers = {"c": chooser(model, "c", WORDS)}
    found = choose_programs(model, layers, data, price, schedule=Schedule(steps=600))["c"]
    least = spent(model, planted, data, price)
    assert least == pytest.approx(price * planted.bits / (WORDS.bits[-1] * 36), rel=1e-4)
    assert least < 0.1 * price
    assert spent(model, found, data, price) < 0.25 * price
    assert found.bits < 0.15 * WORDS.bits[-1] * 36


def test_answers_count_not_the_layer(teacher: onnx.ModelProto, data: Dataset) -> None:
    """A kernel whose answers nobody reads becomes nothing; by its layer's error it would stay."""
    weight = chooser(teacher, "c", WORDS).weight
    head = next(t for t in teacher.graph.initializer if t.name == "wy")
    blind = onnx.numpy_helper.to_array(head).copy()
    blind[:, 2] = 0.0
    model = with_kernels(teacher, "wy", blind)
    found = choose_programs(
        model, {"c": chooser(model, "c", WORDS)}, data, 0.01, schedule=Schedule(steps=200)
    )["c"]
    assert not found.weights[2].any()
    assert np.abs(found.weights[[0, 1, 3, 4, 5]]).sum() > 0
    assert induce(weight, WORDS, 1e-4).weights[2].any()


def test_a_higher_price_takes_fewer_bits(teacher: onnx.ModelProto, data: Dataset) -> None:
    layers = {name: chooser(teacher, name, WORDS) for name in ("a", "c")}
    bits, errors = [], []
    for price in (1e-3, 1e-1, 10.0):
        found = choose_programs(teacher, layers, data, price, schedule=Schedule(steps=100))
        bits.append(sum(one.bits for one in found.values()))
        model = teacher
        for node, one in found.items():
            model = with_kernels(model, layers[node].parameter, one.weights)
        x = np.concatenate([feeds["x"] for feeds, _ in data.batches(64)])
        errors.append(float(np.square(answers(model, x) - answers(teacher, x)).sum()))
    assert bits == sorted(bits, reverse=True)
    assert errors == sorted(errors)
    assert bits[-1] < 0.3 * bits[0]


@pytest.mark.parametrize("by_data", [False, True])
def test_no_dearer_than_its_beginning(
    teacher: onnx.ModelProto, data: Dataset, by_data: bool
) -> None:
    """What an exact search of the layer found is refined, or kept."""
    metric = None
    if by_data:
        # Neighbouring numbers are alike: fitted together, kernels come closer than one by one.
        distance = np.abs(np.arange(54)[:, np.newaxis] - np.arange(54))
        metric = np.exp(-distance / 20.0)
    layers = {"c": chooser(teacher, "c", WORDS, metric)}
    price = 0.5
    found = induce(layers["c"].weight, WORDS, 1e-4, metric)
    start = {"c": found.choice}
    still = choose_programs(teacher, layers, data, price, start=start, schedule=Schedule(steps=0))
    np.testing.assert_array_equal(still["c"].choice, found.choice)
    after = choose_programs(teacher, layers, data, price, start=start)["c"]
    before = spent(teacher, found, data, price)
    assert spent(teacher, after, data, price) <= (1.0 if by_data else 0.98) * before + 1e-6


def test_the_same_seed_gives_the_same(teacher: onnx.ModelProto, data: Dataset) -> None:
    layers = {"c": chooser(teacher, "c", WORDS)}
    one, other = (
        choose_programs(teacher, layers, data, 0.1, schedule=Schedule(steps=30))["c"]
        for _ in range(2)
    )
    np.testing.assert_array_equal(one.choice, other.choice)


def test_refused(teacher: onnx.ModelProto, data: Dataset) -> None:
    with pytest.raises(DataError, match="no labels to choose by"):
        choose_programs(teacher, {"c": chooser(teacher, "c", WORDS)}, data, 0.1, labels=0.5)
    twice = {name: chooser(teacher, "c", WORDS) for name in ("c", "d")}
    with pytest.raises(ModelError, match="share their kernels"):
        choose_programs(teacher, twice, data, 0.1)
    with pytest.raises(ModelError, match="'ra' is no convolution"):
        chooser(teacher, "ra", WORDS)
    with pytest.raises(ModelError, match="not 5x5"):
        chooser(teacher, "c", vocabulary(5, 1))
