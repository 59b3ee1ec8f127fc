"""Distillation end to end on small networks: what it promises, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch", reason="no PyTorch: pip install 'onnxcompress[finetune]'")

from onnxcompress.calibrate.arrays import dataset_from_arrays  # noqa: E402
from onnxcompress.errors import DataError, OutputError, ProviderError  # noqa: E402
from onnxcompress.finetune.job import distil  # noqa: E402
from onnxcompress.finetune.network import Network  # noqa: E402
from onnxcompress.finetune.normalisation import folded_values, normalise  # noqa: E402
from onnxcompress.finetune.operators.call import UnsupportedError  # noqa: E402
from onnxcompress.finetune.optimiser import Optimiser  # noqa: E402
from onnxcompress.finetune.settings import Effort, Settings  # noqa: E402
from onnxcompress.progress import Silent  # noqa: E402

SHORT = {"effort": Effort(epochs=4), "batch": 16, "rate": 0.01}
# BatchNormalization left as it is, behind one of two convolutions.
NORMALISED = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 8, 8] x) => (float[N, 4] y) {
    [a] a = Conv <pads = [1, 1, 1, 1]> (x, wa)
    [n] n = BatchNormalization (a, positive_scale, shift, mean, positive_variance)
    [ra] a1 = Relu (n)
    [c] c = Conv <strides = [2, 2]> (a1, wc, bc) [rc] c1 = Relu (c)
    [g] g = GlobalAveragePool (c1) [f] f = Flatten (g) [y] y = Gemm <transB = 1> (f, wy) }"""
NORMALISED_SHAPES = {
    "wa": (5, 3, 3, 3),
    **dict.fromkeys(("positive_scale", "shift", "mean", "positive_variance"), (5,)),
    "wc": (6, 5, 3, 3),
    "bc": (6,),
    "wy": (4, 6),
}


class Told(Silent):
    """Keeps what is told; interrupts after some epochs."""

    def __init__(self, epochs: int = 99) -> None:
        self.words: list[str] = []
        self.left = epochs

    def note(self, words: str) -> None:
        self.words.append(words)
        if words.startswith("epoch"):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("norms", [True, False])
def test_comes_closer(teacher: Any, forgetful: Any, data: Any, norms: bool) -> None:
    student = forgetful(teacher)
    found = distil(student, teacher, data, Settings(normalise=norms, **SHORT), Silent())
    assert found.improved
    assert found.normalised == 2 * norms
    assert found.after.distance < 0.5 * found.before.distance
    # Measured anew in ONNX Runtime, on inputs that were neither trained on nor chosen by.
    x = np.random.default_rng(5).standard_normal((50, 3, 4, 4)).astype(np.float32)
    x = x.repeat(2, 2).repeat(2, 3)
    wanted = run(teacher, x)
    before, after = (np.square(run(m, x) - wanted).mean() for m in (student, found.model))
    assert after < before
    assert [n.SerializeToString() for n in found.model.graph.node] == [
        n.SerializeToString() for n in student.graph.node
    ]


def test_never_worse(teacher: Any, data: Any) -> None:
    """A student that knows everything already is left alone, whatever training does to it."""
    found = distil(teacher, teacher, data, Settings(normalise=False, **SHORT), Silent())
    assert not found.improved
    assert found.model == teacher
    assert found.before.distance == 0
    assert len(found.epochs) == 4
    assert all(epoch.score.distance > 0 for epoch in found.epochs)


def test_same_seed_same_bytes(teacher: Any, forgetful: Any, data: Any) -> None:
    made = [
        distil(forgetful(teacher), teacher, data, Settings(seed=seed, **SHORT), Silent()).model
        for seed in (0, 0, 1)
    ]
    octets = [model.SerializeToString(deterministic=True) for model in made]
    assert octets[0] == octets[1] != octets[2]


@pytest.mark.parametrize("killed_after", [1, 3])
def test_killed_and_started_again(
    teacher: Any, forgetful: Any, data: Any, tmp_path: Path, killed_after: int
) -> None:
    student = forgetful(teacher)
    whole = distil(student, teacher, data, Settings(**SHORT), Silent())
    settings = Settings(run=tmp_path, **SHORT)
    with pytest.raises(KeyboardInterrupt):
        distil(student, teacher, data, settings, Told(killed_after))
    told = Told()
    again = distil(student, teacher, data, settings, told)
    assert f"going on behind epoch {killed_after}" in told.words
    assert sum(words.startswith("epoch") for words in told.words) == 4 - killed_after
    assert again.model == whole.model
    # What another job left there is not believed.
    told = Told()
    distil(student, teacher, data, Settings(run=tmp_path, **SHORT | {"rate": 0.02}), told)
    assert "is of another training: begun anew" in told.words[0]
    assert sum(words.startswith("epoch") for words in told.words) == 4


def test_a_file_that_is_no_checkpoint(teacher: Any, data: Any, tmp_path: Path) -> None:
    (tmp_path / "finetune.pt").write_bytes(b"something else")
    with pytest.raises(OutputError, match="is no checkpoint: remove it"):
        distil(teacher, teacher, data, Settings(run=tmp_path, **SHORT), Silent())


def test_minutes_end_within_an_epoch(
    teacher: Any, forgetful: Any, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by a second whenever it is looked at."""
    seconds = iter(range(1_000))
    monkeypatch.setattr("onnxcompress.finetune.training.time.perf_counter", lambda: next(seconds))
    settings = Settings(**SHORT | {"effort": Effort(minutes=0.25), "batch": 4})
    found = distil(forgetful(teacher), teacher, data, settings, Silent())
    # An epoch would have 36 steps; the first of fifteen seconds is the beginning.
    assert len(found.epochs) == 1
    assert 15 <= found.seconds <= 20
    assert found.improved


def test_weights_settle(
    teacher: Any, forgetful: Any, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the last third of all steps statistics stay, and normalise."""
    steps: list[list[np.ndarray]] = []
    genuine = Optimiser.step

    def step(self: Any, *arguments: Any) -> Any:
        steps.append([norm.mean.numpy().copy() for norm, _, _ in networks[0].inserted])
        return genuine(self, *arguments)

    networks: list[Network] = []
    monkeypatch.setattr(Network, "insert", recording(Network.insert, networks))
    monkeypatch.setattr(Optimiser, "step", step)
    settings = Settings(**SHORT | {"effort": Effort(epochs=3)})
    distil(forgetful(teacher), teacher, data, settings, Silent())
    assert len(steps) == 27
    moved = [
        any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))
        for one, other in pairwise(steps)
    ]
    assert moved == [True] * 17 + [False] * 9


def test_nothing_is_normalised_where_that_would_be_all_there_is_to_learn(
    teacher: Any, forgetful: Any, images: Any
) -> None:
    """Close to its teacher, a student is trained as it is, in small steps; a distant one is not."""
    data = images(teacher, 1000)
    for deviation, normalised, batch in ((0.15, 2, 64), (0.003, 0, 8)):
        told = Told()
        settings = Settings(effort=Effort(epochs=2))
        found = distil(forgetful(teacher, deviation), teacher, data, settings, told)
        assert found.improved
        assert (found.normalised, found.batch) == (normalised, batch)
        assert any("nothing is normalised" in words for words in told.words) == (not normalised)


def test_sizes_of_weights_do_not_matter(teacher: Any, forgetful: Any, data: Any) -> None:
    """Layers that make numbers 16 times as large, and a last one that makes them small again, are
    trained like the others: steps are as large as the tensors."""

    def larger(model: onnx.ModelProto) -> onnx.ModelProto:
        made = onnx.ModelProto()
        made.CopyFrom(model)
        factors = {"wa": 16, "ba": 16, "bc": 16, "wy": 1 / 16}
        for tensor in made.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor) * np.float32(factors.get(tensor.name, 1))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return made

    settings = Settings(normalise=False, **SHORT)
    ends = [
        distil(*pair, data, settings, Silent()).after.distance
        for pair in ((forgetful(teacher), teacher), (larger(forgetful(teacher)), larger(teacher)))
    ]
    # Rounding grows over the steps; at one rate for all tensors they are a quarter apart.
    assert ends[1] == pytest.approx(ends[0], rel=1e-3)


def recording(genuine: Any, networks: list[Network]) -> Any:
    """A method that keeps whose it is."""

    def call(self: Network, *arguments: Any) -> None:
        networks.append(self)
        genuine(self, *arguments)

    return call


def test_constants_that_are_not_finite(teacher: Any, forgetful: Any, data: Any) -> None:
    """A bound of infinity is no weight: averages leave it alone."""
    bound = onnx.numpy_helper.from_array(np.array([np.inf], np.float32), "bound")
    teacher.graph.initializer.append(bound)
    teacher.graph.node[4].op_type = "Min"
    teacher.graph.node[4].input.append("bound")
    student = forgetful(teacher)
    for tensor in student.graph.initializer:
        if tensor.name == "bound":
            tensor.CopyFrom(bound)
    assert distil(student, teacher, data, Settings(**SHORT), Silent()).improved


def test_labels_have_a_share(teacher: Any, forgetful: Any, data: Any) -> None:
    x = np.concatenate([feeds["x"] for feeds, _ in data.batches(64)])
    labelled = dataset_from_arrays(
        {"x": x, "y": run(teacher, x).argmax(1)}, data.inputs, purpose="--data", source="made"
    )
    made = [
        distil(forgetful(teacher), teacher, labelled, Settings(labels=share, **SHORT), Silent())
        for share in (0.0, 0.5)
    ]
    assert all(found.improved for found in made)
    assert made[0].model != made[1].model


def test_normalising_changes_nothing(teacher: Any, data: Any) -> None:
    """In float64: neither putting it in, nor folding it after a step of training."""
    network = Network(teacher).double().eval()
    batches = [{"x": torch.from_numpy(feeds["x"]).double()} for feeds, _ in data.batches(32)]
    before = network(batches[0])["y"]
    assert normalise(network, batches) == 2
    network.eval()
    torch.testing.assert_close(network(batches[0])["y"], before, rtol=1e-12, atol=1e-12)
    network.train()
    torch.autograd.backward(network(batches[1])["y"].square().mean())
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    made = network.eval()(batches[0])["y"]
    assert (made - before).abs().max() > 1e-3
    plain = Network(teacher).double().eval()
    values = folded_values(network)
    with torch.no_grad():
        for name in plain.trained:
            plain.parameter(name).copy_(values[name])
    torch.testing.assert_close(plain(batches[0])["y"], made, rtol=1e-12, atol=1e-12)


def test_layers_that_answer_are_not_normalised(fill: Any) -> None:
    """Nor are those without a bias, those that share weights, and those of one position."""
    model = fill(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y, float[N, 3, 1, 1] z) {
            a = Conv (x, w1, b1) b = Relu (a) c = Conv (b, w2) d = Conv (c, w3, b3)
            e = Conv (d, w3, b3) f = Conv (e, w4, b4) g = Sigmoid (f) y = Mul (g, e)
            h = GlobalAveragePool (e) i = Conv (h, w5, b5) j = Relu (i) z = Conv (j, w2) }""",
        {f"w{n}": (3, 3, 1, 1) for n in range(1, 6)} | {f"b{n}": (3,) for n in (1, 3, 4, 5)},
        0,
    )
    network = Network(model)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert normalise(network, [{"x": x}]) == 1
    assert [weight for _, weight, _ in network.inserted] == ["w1"]


def test_batch_normalisation_of_the_graph(forgetful: Any, fill: Any, images: Any) -> None:
    teacher = fill(NORMALISED, NORMALISED_SHAPES, 2)
    data = images(teacher, 160)
    found = distil(forgetful(teacher), teacher, data, Settings(**SHORT), Silent())
    assert found.improved
    # The convolution in front of it has no normalisation of its own.
    assert found.normalised == 1
    old, new = (
        {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        for model in (forgetful(teacher), found.model)
    )
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == set(NORMALISED_SHAPES)


def test_programs_stay_programs() -> None:
    """What kernels are filled with is trained; that they are made of it stays."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "kernels" : 1]>
        net (float[N, 2, 6, 6] x) => (float[N, 3, 4, 6] y)
        <float[3, 2, 3, 1] fill = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9},
         float[1] bound = {0.5}>
        { w = kernels.Row (fill) c = Conv <pads = [0, 1, 0, 1]> (x, w) y = Max (c, bound) }
        <domain: "kernels", opset_import: ["" : 17]>
        Row (column) => (kernel) { kernel = Concat <axis = 3> (column, column, column) }"""
    )
    network = Network(model)
    assert network.trained == ("fill",)
    x = np.random.default_rng(0).integers(-5, 6, (2, 2, 6, 6)).astype(np.float32)
    torch.autograd.backward(network({"x": torch.from_numpy(x)})["y"].sum())
    assert network.parameter("fill").grad is not None
    # Of whole numbers every sum is exact.
    np.testing.assert_array_equal(network.answers({"x": x})["y"], run(model, x))


def test_labels_are_asked_for_and_missing(teacher: Any, data: Any) -> None:
    with pytest.raises(DataError, match="no labels to train on"):
        distil(teacher, teacher, data, Settings(labels=0.5, **SHORT), Silent())


def test_no_cuda_device(teacher: Any, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ProviderError, match="no CUDA device"):
        distil(teacher, teacher, data, Settings(device="cuda", **SHORT), Silent())


def test_unknown_operator(teacher: Any, data: Any) -> None:
    teacher.graph.node[1].op_type = "NonMaxSuppression"
    with pytest.raises(UnsupportedError, match="node 'ra': operator NonMaxSuppression is not"):
        distil(teacher, teacher, data, Settings(**SHORT), Silent())


def test_a_small_fixed_batch(forgetful: Any, fill: Any, images: Any) -> None:
    """Steps gather several batches; nothing is normalised by two samples."""
    text = NORMALISED.replace("float[N, 3, 8, 8]", "float[2, 3, 8, 8]").replace("[N, 4]", "[2, 4]")
    teacher = fill(text, NORMALISED_SHAPES, 2)
    settings = Settings(effort=Effort(epochs=6), batch=16, rate=0.01)
    found = distil(forgetful(teacher), teacher, images(teacher, 160), settings, Silent())
    assert found.improved
    assert found.normalised == 0
    old, new = (
        {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        for model in (forgetful(teacher), found.model)
    )
    same = {name for name in old if np.array_equal(old[name], new[name])}
    assert same == {"mean", "positive_variance"}
