"""The network run once over its samples: classes, scores and energies, and labels that fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress.calibrate.sample_batches as batches_module
from onnxcompress.calibrate.answers import tapped
from onnxcompress.errors import DataError, ModelError


@pytest.mark.parametrize("ending", ["logits", "softmax", "log", "made", "pixels", "pixels softmax"])
@pytest.mark.parametrize(("batch", "size"), [("N", 64), ("N", 3), (1, 64), (2, 64)])
def test_scores_and_classes(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch, ending: str, batch: Any, size: int
) -> None:
    """Row by row in the order of the samples; the filling of the last batch leaves no trace."""
    monkeypatch.setattr(batches_module, "_BATCH", size)
    model = truth.classifier(nets, ending, batch=batch)
    measured = truth.measured(model, nets.samples(model, 8))
    targets = measured.targets
    answer = truth.forward(truth.classifier(nets, ending), measured.feeds)({})["y"]
    scores = truth.log_probabilities(ending, answer)
    assert targets.answer.classes == 8
    assert targets.answer.probabilities == (ending == "made")
    assert targets.answer.outputs == ("y",)
    np.testing.assert_allclose(targets.scores, scores, rtol=0, atol=1e-4)
    assert targets.classes.dtype == np.int64
    assert np.array_equal(targets.classes, scores.argmax(axis=1))
    assert len(set(targets.classes.tolist())) > 1


def test_labels_are_those_of_the_samples_taken(truth: Any, nets: Any) -> None:
    model = truth.classifier(nets)
    labels = np.array([3, 0, 5, 1, 7, 2, 6, 4, 0])
    measured = truth.measured(model, nets.samples(model, 9), labels, samples=6)
    found = measured.targets.classes
    assert np.array_equal(found, labels[measured.order])
    assert len(found) == 6


@pytest.mark.parametrize(("label", "count"), [(8, 1), (11, 4), (-1, 1)])
@pytest.mark.parametrize("what", ["gate_gradients", "curvature", "responses", "fisher", "ablate"])
def test_labels_that_are_no_class(truth: Any, nets: Any, label: int, count: int, what: str) -> None:
    model = truth.classifier(nets)
    labels = np.array([0, 7, 3, 1])
    labels[:count] = label
    sensitivity = truth.measured(model, nets.samples(model, 4), labels).sensitivity
    more = ([{"a": (0,)}],) if what == "ablate" else ()
    words = f"^--data here: label {label} is no class .* has 8; --preprocess label_offset=N"
    with pytest.raises(DataError, match=words) as caught:
        getattr(sensitivity, what)({"a": 1}, *more)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_the_first_and_the_last_label_are_classes(truth: Any, nets: Any) -> None:
    model = truth.classifier(nets)
    labels = np.array([0, 7])
    assert set(truth.measured(model, nets.samples(model, 2), labels).targets.classes) == {0, 7}


@pytest.mark.parametrize(("batch", "count", "size"), [("N", 5, 64), ("N", 5, 2), (3, 6, 64)])
def test_energies(
    truth: Any,
    nets: Any,
    monkeypatch: pytest.MonkeyPatch,
    batch: Any,
    count: int,
    size: int,
) -> None:
    monkeypatch.setattr(batches_module, "_BATCH", size)
    model = truth.several(nets, batch=batch)
    measured = truth.measured(model, nets.samples(model, count))
    targets = measured.targets
    outputs = truth.forward(truth.several(nets), measured.feeds)({})
    assert targets.answer.classes == 0
    assert list(targets.energies) == list(outputs)
    for name, values in outputs.items():
        expected = [float((row**2).sum()) for row in values]
        np.testing.assert_allclose(targets.energies[name], expected, rtol=1e-5)


def test_labels_without_classes_do_not_matter(truth: Any, nets: Any) -> None:
    model = truth.several(nets)
    targets = truth.measured(model, nets.samples(model, 3), np.array([5, -1, 99])).targets
    assert targets.classes.size == 0


def test_no_answer_in_real_numbers(truth: Any, nets: Any) -> None:
    text = """net (float[N, 3, 4, 5] x) => (int64[N, 1, 4, 5] y) {
        [first] a = Conv (x, w0)
        [best] y = ArgMax <axis=1> (a) }"""
    model = nets.build(text, w0=(4, 3, 1, 1))
    with pytest.raises(ModelError, match="no output of the network is a floating-point"):
        truth.measured(model, nets.samples(model, 2)).sensitivity.gate_gradients({"a": 1})


def test_tapped_copies(truth: Any, nets: Any, kit: Any) -> None:
    """Outputs in the order asked for, those of the model among them with what is declared."""
    model = truth.classifier(nets)
    before, x = model.SerializeToString(), nets.samples(model, 2)
    copy = tapped(model, ["e", "y", "b"])
    assert [output.name for output in copy.graph.output] == ["e", "y", "b"]
    assert copy.graph.output[1] == model.graph.output[0]
    found = kit.run(copy, x)
    assert np.array_equal(found[1], kit.run(model, x)[0])
    assert [value.shape[1] for value in found] == [4, 8, 4]
    assert model.SerializeToString() == before
    assert isinstance(copy, onnx.ModelProto)
