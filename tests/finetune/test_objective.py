"""Losses against formulas written out here; variations of images; options."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="no PyTorch: pip install 'onnxcompress[finetune]'")

from onnxcompress.errors import ModelError, UsageError  # noqa: E402
from onnxcompress.finetune.augmentation import fitting, parse_augmentation, varied  # noqa: E402
from onnxcompress.finetune.network import Network  # noqa: E402
from onnxcompress.finetune.objective import Mixture, class_scores, objective, shared_taps  # noqa: E402
from onnxcompress.finetune.settings import Effort, Settings, parse_effort, parse_losses  # noqa: E402


def softened(scores: np.ndarray, heat: float) -> np.ndarray:
    powers = np.exp(scores / heat - (scores / heat).max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def aim_of(student: Any, teacher: Any, mixture: Mixture) -> Any:
    networks = Network(student).eval(), Network(teacher).eval()
    x = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    shapes = tuple(network.shapes({"x": x}) for network in networks)
    made = objective(*networks, (student, teacher), shapes, mixture)
    made.measure([{"x": x}])
    return made, {"x": x}


def test_divergence_of_class_scores(teacher: Any, forgetful: Any) -> None:
    aim, feeds = aim_of(forgetful(teacher), teacher, Mixture(temperature=3.0, labels=0.25))
    answered, taught = aim.answered(feeds), aim.taught(feeds)
    own, wanted = (softened(v["y"].detach().numpy(), 3.0) for v in (answered, taught))
    divergence = 9.0 * (wanted * np.log(wanted / own)).sum(1).mean()
    assert aim.distance(answered, taught).item() == pytest.approx(divergence, rel=1e-4)
    labels = torch.arange(12) % 4
    plain = softened(answered["y"].detach().numpy(), 1.0)
    truth = -np.log(plain[np.arange(12), np.arange(12) % 4]).mean()
    mixed = 0.75 * divergence + 0.25 * truth
    assert aim.loss(answered, taught, labels).item() == pytest.approx(mixed, rel=1e-4)
    same = (own.argmax(1) == wanted.argmax(1)).sum()
    assert aim.agreement(answered, taught) == (same, 12)


def test_other_outputs_and_features(teacher: Any, forgetful: Any) -> None:
    """Squared errors relative to how much the teacher's vary."""
    for model in (teacher, student := forgetful(teacher)):
        del model.graph.node[5:]
        model.graph.output[0].CopyFrom(
            onnx.helper.make_tensor_value_info("s1", onnx.TensorProto.FLOAT, ["N", 6, 8, 8])
        )
    aim, feeds = aim_of(student, teacher, Mixture(features=0.5))
    assert aim.scores is None
    assert aim.taps == ("s",)
    answered, taught = aim.answered(feeds), aim.taught(feeds)

    def error(name: str) -> float:
        own, wanted = (v[name].detach().double().numpy() for v in (answered, taught))
        spread = np.square(wanted - wanted.mean(0)).mean()
        return float(np.square(own - wanted).mean() / spread)

    assert aim.distance(answered, taught).item() == pytest.approx(error("s1"), rel=1e-4)
    total = error("s1") + 0.5 * error("s")
    assert aim.loss(answered, taught).item() == pytest.approx(total, rel=1e-4)


def with_places(model: Any) -> Any:
    """The same with what it computes at every place as a second output."""
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, ["N", 6, 8, 8])
    )
    return model


@pytest.mark.parametrize("losses", [{"y": "cosine"}, {"": "cosine"}, {"": "cosine", "s": "error"}])
def test_cosines(teacher: Any, forgetful: Any, losses: dict[str, str]) -> None:
    """The angle between the channels of both, at every place; squared errors of the others."""
    student = with_places(forgetful(teacher))
    aim, feeds = aim_of(student, with_places(teacher), Mixture(losses=losses))
    assert aim.scores is None
    answered, taught = aim.answered(feeds), aim.taught(feeds)
    parts = []
    for name in ("y", "s"):
        own, wanted = (v[name].detach().double().numpy() for v in (answered, taught))
        lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(wanted, axis=1)
        error = np.square(own - wanted).mean() / np.square(wanted - wanted.mean(0)).mean()
        cosine = 1 - ((own * wanted).sum(1) / lengths).mean()
        parts.append(cosine if losses.get(name, losses.get("")) == "cosine" else error)
    assert aim.distance(answered, taught).item() == pytest.approx(np.mean(parts), rel=1e-5)


def test_losses_and_labels_that_do_not_fit(teacher: Any) -> None:
    with pytest.raises(UsageError, match="no output 'z' among y"):
        aim_of(teacher, teacher, Mixture(losses={"z": "error"}))
    with pytest.raises(UsageError, match="labels can have no share"):
        aim_of(teacher, teacher, Mixture(losses={"y": "error"}, labels=0.5))
    for node in (
        onnx.helper.make_node("Constant", [], ["flat"], "flat", value_ints=[-1]),
        onnx.helper.make_node("Reshape", ["y", "flat"], ["z"], "last"),
    ):
        teacher.graph.node.append(node)
    teacher.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["M"])
    )
    aim, feeds = aim_of(teacher, teacher, Mixture(losses={"": "cosine"}))
    with pytest.raises(UsageError, match="output 'z' has no channels"):
        aim.distance(aim.answered(feeds), aim.taught(feeds))


def test_whole_numbers_are_not_learnt_from(teacher: Any) -> None:
    """Which class won says nothing that could be trained towards; scores beside it do."""
    teacher.graph.node.append(onnx.helper.make_node("ArgMax", ["y"], ["k"], name="k", axis=1))
    teacher.graph.output.append(
        onnx.helper.make_tensor_value_info("k", onnx.TensorProto.INT64, ["N", 1])
    )
    aim, feeds = aim_of(teacher, teacher, Mixture())
    assert aim.scores == ("y", "y")
    assert aim.distance(aim.answered(feeds), aim.taught(feeds)).item() == 0
    del teacher.graph.output[0]
    with pytest.raises(ModelError, match="no floating-point output"):
        aim_of(teacher, teacher, Mixture())


def test_scores_in_front_of_a_softmax() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 4, 1, 1] x) => (float[N, 4] y)
        { a = Softmax <axis = 1> (x) y = Flatten (a) }"""
    )
    assert class_scores(model) == "x"


def test_classes_that_answer_for_themselves(teacher: Any) -> None:
    """Sigmoids are no scores of one decision: they are held to the teacher's one by one."""
    teacher.graph.node[-1].output[0] = "scores"
    teacher.graph.node.append(onnx.helper.make_node("Sigmoid", ["scores"], ["y"], "last"))
    assert class_scores(teacher) is None
    aim, _ = aim_of(teacher, teacher, Mixture())
    assert aim.scores is None


def test_taps_are_where_both_are_alike(teacher: Any) -> None:
    shapes = Network(teacher).shapes({"x": torch.zeros(1, 3, 8, 8)})
    assert shared_taps(teacher, (shapes, shapes)) == ("s",)
    assert shared_taps(teacher, (shapes, shapes | {"s": (1, 5, 8, 8)})) == ("a", "a1", "c", "s1")
    assert shared_taps(teacher, (shapes, {})) == ()


def test_flips_and_crops() -> None:
    """Every image is a window of itself with mirrored borders, some of them flipped."""
    x = torch.arange(64 * 16 * 16, dtype=torch.float32).reshape(64, 1, 16, 16)
    found = varied({"x": x}, ("flip", "crop"), torch.Generator().manual_seed(0))["x"]
    again = varied({"x": x}, ("flip", "crop"), torch.Generator().manual_seed(0))["x"]
    assert torch.equal(found, again)
    seen = set()
    for image, made in zip(x.numpy()[:, 0], found.numpy()[:, 0], strict=True):
        windows = {
            (flip, top, left): np.pad(image[:, ::-1] if flip else image, 2, mode="reflect")[
                top : top + 16, left : left + 16
            ]
            for flip in (False, True)
            for top in range(5)
            for left in range(5)
        }
        (which,) = [key for key, window in windows.items() if np.array_equal(window, made)]
        seen.add(which)
    assert {flip for flip, _, _ in seen} == {False, True}
    assert {top for _, top, _ in seen} == {left for _, _, left in seen} == set(range(5))


def test_zooms() -> None:
    """Pixels are taken from places in equal steps about the middle, mirrored at the borders."""
    rows, columns = np.mgrid[:33, :21].astype(np.float32)
    x = torch.from_numpy(np.stack([rows, columns])[None].repeat(64, 0))
    found = varied({"x": x}, ("zoom",), torch.Generator().manual_seed(0))["x"].double().numpy()
    steps = []
    for image in found:
        every = []
        for which, count in enumerate(image.shape[1:]):
            line = image[which].take(count // 2, 1 - which)
            middle = count // 2
            every.append(line[middle + 1] - line[middle])
            places = middle + every[-1] * (np.arange(count) - middle)
            beyond = np.abs(places + 0.5) - 0.5
            mirrored = count - 0.5 - np.abs(count - 0.5 - beyond)
            wanted = np.clip(mirrored, 0, count - 1)
            np.testing.assert_allclose(line, wanted, rtol=0, atol=2e-4)
            assert np.abs(image[which] - np.expand_dims(line, 1 - which)).max() < 2e-5
        steps.append(every)
    down, across = np.array(steps).T
    assert 1 / 1.4 < np.sqrt(down * across).min() < 0.8 < 1.25 < np.sqrt(down * across).max() < 1.4
    assert 1 / 1.15 < np.sqrt(across / down).min() < 0.9
    assert 1.1 < np.sqrt(across / down).max() < 1.15


def test_mixtures() -> None:
    """Every image is a mixture of itself and another."""
    x = torch.eye(8).reshape(8, 1, 8, 1).repeat(1, 1, 1, 8)
    found = varied({"x": x}, ("mixup",), torch.Generator().manual_seed(0))["x"][:, 0, :, 0]
    torch.testing.assert_close(found.sum(1), torch.ones(8))
    assert torch.all((found > 0).sum(1) <= 2)
    assert torch.all(found.diagonal() > 0)
    assert (found > 0).sum() > 8


def test_other_inputs_are_left_alone() -> None:
    feeds = {"x": torch.ones(4, 7), "n": torch.ones(4, 1, 2, 2, dtype=torch.int64)}
    found = varied(feeds, ("flip", "crop", "mixup"), torch.Generator().manual_seed(0))
    assert all(torch.equal(found[name], feeds[name]) for name in feeds)


@pytest.mark.parametrize(
    ("shapes", "kinds"),
    [
        ([(2, 3, 32, 32)], ("flip", "crop")),
        ([(2, 1, 28, 28)], ("crop",)),
        ([(2, 1, 4, 28)], ()),
        ([(2, 49, 10, 8)], ()),
        ([(2, 3, 32, 32), (2, 3, 32, 32)], ()),
        ([(2, 10)], ()),
    ],
)
def test_what_fits(shapes: Any, kinds: Any) -> None:
    assert fitting(shapes) == kinds


def test_options() -> None:
    assert parse_effort("3e") == Effort(epochs=3)
    assert parse_effort("2.5m") == Effort(minutes=2.5)
    assert parse_augmentation("auto") is None
    assert parse_augmentation("none") == ()
    assert parse_augmentation("flip,mixup") == ("flip", "mixup")
    for text in ("3", "0e", "e", "-1e", "1.5e", "10s", ""):
        with pytest.raises(UsageError, match="neither"):
            parse_effort(text)
    with pytest.raises(UsageError, match="'turn' is none of"):
        parse_augmentation("turn")
    assert parse_losses("auto") == {}
    assert parse_losses("cosine") == {"": "cosine"}
    assert parse_losses("a=b=cosine,error") == {"a=b": "cosine", "": "error"}
    for text in ("", "angle", "a=", "a=error,a=cosine", "auto,error"):
        with pytest.raises(UsageError, match="--loss"):
            parse_losses(text)
    for wrong in ({"labels": 1.5}, {"rate": -1.0}, {"held_out": 1.0}, {"temperature": 0.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Settings(**wrong)


@pytest.mark.parametrize(
    ("samples", "batch"), [(1, 4), (799, 4), (800, 8), (6399, 32), (6400, 64), (10**6, 64)]
)
def test_steps_are_not_too_few(samples: int, batch: int) -> None:
    """At least a hundred in an epoch; rates follow the fourth root of what a step averages over."""
    rate = 4e-3 * math.sqrt(math.sqrt(batch / 64))
    assert Settings().step(samples, alone=True) == (batch, pytest.approx(rate, rel=1e-12))
    assert Settings().step(samples) == (64, 4e-3)
    large = Settings(batch=256).step(samples, alone=True)
    assert large == (256, pytest.approx(4e-3 * math.sqrt(2)))
    assert Settings(batch=3, rate=0.5).step(samples) == (3, 0.5)
