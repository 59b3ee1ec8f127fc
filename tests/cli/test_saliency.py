"""`saliency` from the command line: tables, JSON, what is refused; and `prune` by such criteria."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

CRITERIA = [
    "weight", "activation-mean", "activation-std", "apoz", "mutual-information", "obd", "taylor",
    "taylor-gate", "oracle-abs", "oracle-loss", "random",
]  # fmt: skip
GRADIENTS = ["obd", "taylor", "taylor-gate"]
WIDTHS = {"conv1": 24, "conv2": 32, "point": 32}
FEW = ("--samples", "12", "--oracle-samples", "6")


@pytest.fixture
def labelled(samples: Path) -> Path:
    """The same inputs with labels."""
    path = samples.with_name("labelled.npz")
    with np.load(samples) as arrays:
        labels = np.random.default_rng(1).integers(0, 5, len(arrays["x"]))
        np.savez(path, x=arrays["x"], y=labels)
    return path


@pytest.fixture
def opaque(damaged: Callable[..., Path]) -> Path:
    """The tiny model with an operator without adjoint behind all its layers."""

    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.name == "mean")
        node.output[0] = "kept"
        at = list(model.graph.node).index(node) + 1
        odd = onnx.helper.make_node("Hardmax", ["kept"], ["f"], name="odd", axis=1)
        model.graph.node.insert(at, odd)

    return damaged(change, "opaque.onnx")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A network that answers with a picture."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 3, 6, 7] x) => (float[N, 2, 6, 7] y) {
            [one] a = Conv <kernel_shape = [1, 1]> (x, w1)
            [r1] b = Relu (a)
            [last] y = Conv <kernel_shape = [1, 1]> (b, w2) }"""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(9)
    for name, shape in {"w1": (8, 3, 1, 1), "w2": (2, 8, 1, 1)}.items():
        values = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    path = tmp_path / "picture.onnx"
    onnx.save(model, path)
    return path


def strict(text: str) -> Any:
    """JSON without NaN and Infinity, which are no JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in JSON")

    return json.loads(text, parse_constant=refuse)


def rows(text: str) -> dict[str, list[str]]:
    """The table: figures by criterion."""
    lines = [line.split() for line in text.splitlines()]
    return {words[0]: words[1:] for words in lines if words and words[0] in CRITERIA}


def ranks(values: list[float]) -> np.ndarray:
    """From 1, ties sharing the mean."""
    return np.array(
        [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]
    )


def spearman(one: list[float], other: list[float]) -> float:
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def test_table(cli: Callable[..., Any], model: Path, labelled: Path) -> None:
    """A row for every criterion but the reference, with four figures between -1 and 1."""
    outcome = cli("saliency", model, "--data", labelled, *FEW)
    assert outcome.code == 0, outcome.err
    table = rows(outcome.out)
    assert list(table) == [name for name in CRITERIA if name != "oracle-abs"]
    for figures in table.values():
        assert len(figures) == 4
        assert all(-1.0 <= float(figure) <= 1.0 for figure in figures)
    assert "in.onnx: rank correlation with oracle-abs" in outcome.out
    assert "88 channels of 3 layers; 12 samples, oracle on 6" in outcome.out
    assert "loss against labels" in outcome.out
    assert "conv1 (24 channels)" not in outcome.out


def test_json(cli: Callable[..., Any], model: Path, labelled: Path) -> None:
    """Every score, from which every correlation follows; the table shows the same."""
    outcome = cli("saliency", model, "--data", labelled, *FEW, "--seed", "7", "--json")
    assert outcome.code == 0, outcome.err
    found = strict(outcome.out)
    assert list(found) == [
        "model", "data", "reference", "samples", "oracle_samples", "loss", "criteria", "refused",
        "layers", "environment",
    ]  # fmt: skip
    assert found["reference"] == "oracle-abs"
    assert (found["samples"], found["oracle_samples"], found["loss"]) == (12, 6, "labels")
    assert found["refused"] == {}
    assert {layer["node"]: len(layer["scores"]["taylor"]) for layer in found["layers"]} == WIDTHS
    for layer in found["layers"]:
        assert list(layer) == ["node", "fisher_trace", "scores"]
        assert layer["fisher_trace"] > 0.0
        assert set(layer["scores"]) == set(CRITERIA)
        for line in layer["scores"].values():
            assert len(line) == WIDTHS[layer["node"]]
            assert all(isinstance(score, float) for score in line)
    assert set(found["criteria"]) == set(CRITERIA) - {"oracle-abs"}
    for name, each in found["criteria"].items():
        lines = {at["node"]: at["scores"] for at in found["layers"]}
        expected = {n: spearman(line[name], line["oracle-abs"]) for n, line in lines.items()}
        assert each["layers"] == pytest.approx(expected, abs=1e-9)
        assert each["per_layer"] == pytest.approx(sum(expected.values()) / 3, abs=1e-9)
        assert each["worst_layer"] == pytest.approx(min(expected.values()), abs=1e-9)
        reference = [score for line in lines.values() for score in line["oracle-abs"]]
        raw = [score for line in lines.values() for score in line[name]]
        norms = {node: np.linalg.norm(line[name]) for node, line in lines.items()}
        scaled = [score / norms[n] for n, line in lines.items() for score in line[name]]
        assert each["all_layers"] == pytest.approx(spearman(raw, reference), abs=1e-9)
        assert each["all_layers_l2"] == pytest.approx(spearman(scaled, reference), abs=1e-9)
    table = rows(cli("saliency", model, "--data", labelled, *FEW, "--seed", "7").out)
    names = ("per_layer", "worst_layer", "all_layers", "all_layers_l2")
    for name, figures in table.items():
        assert figures == [f"{found['criteria'][name][key]:.2f}" for key in names]


def test_per_layer(cli: Callable[..., Any], model: Path, samples: Path) -> None:
    chosen = ("--criterion", "weight", "--criterion", "taylor")
    options = ("--data", samples, *FEW, *chosen)
    outcome = cli("saliency", model, *options, "--per-layer")
    assert outcome.code == 0, outcome.err
    assert "loss against the network's own classes" in outcome.out
    found = strict(cli("saliency", model, *options, "--json").out)
    assert found["loss"] == "the network's own classes"
    said = outcome.out.splitlines()[-3:]
    assert said == [
        f"{node} ({width} channels): "
        + ", ".join(f"{n} {found['criteria'][n]['layers'][node]:.2f}" for n in ("weight", "taylor"))
        for node, width in WIDTHS.items()
    ]


def test_reference(cli: Callable[..., Any], model: Path, samples: Path) -> None:
    """Any criterion; the others are compared with it, and it is not compared with itself."""
    options = ("--data", samples, "--criterion", "activation-std", "--criterion", "weight")
    outcome = cli("saliency", model, *options, "--reference", "weight", "--json")
    assert outcome.code == 0, outcome.err
    found = strict(outcome.out)
    assert found["reference"] == "weight"
    assert list(found["criteria"]) == ["activation-std"]
    assert {tuple(layer["scores"]) for layer in found["layers"]} == {("activation-std", "weight")}
    shown = cli("saliency", model, *options, "--reference", "weight").out
    assert "rank correlation with weight" in shown


def test_exclude(cli: Callable[..., Any], model: Path, samples: Path) -> None:
    options = ("--data", samples, *FEW, "--criterion", "taylor", "--exclude", "^conv", "--json")
    found = strict(cli("saliency", model, *options).out)
    assert [layer["node"] for layer in found["layers"]] == ["point"]


def test_seed(cli: Callable[..., Any], model: Path, samples: Path) -> None:
    """Of the samples that are taken, and of chance; the same seed gives the same text."""
    options = ("--data", samples, *FEW, "--criterion", "random", "--criterion", "taylor", "--json")
    one, again, other = (cli("saliency", model, *options, "--seed", s).out for s in "334")
    assert strict(one)["layers"] == strict(again)["layers"]
    assert strict(one)["environment"]["seed"] == 3
    for first, second in zip(strict(one)["layers"], strict(other)["layers"], strict=True):
        for name in ("random", "taylor", "oracle-abs"):
            assert first["scores"][name] != second["scores"][name]


def test_quiet(cli: Callable[..., Any], model: Path, samples: Path) -> None:
    """The result alone; nothing on standard error."""
    options = ("--data", samples, *FEW, "--criterion", "taylor")
    quiet = cli("saliency", model, *options, "--quiet")
    assert (quiet.code, quiet.err) == (0, "")
    assert quiet.out == cli("saliency", model, *options).out


def test_scores_that_are_all_equal(
    cli: Callable[..., Any], damaged: Callable[..., Path], samples: Path
) -> None:
    """ "-" in the table, null in JSON."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name in {"w1", "w2", "w3"}:
                shape = onnx.numpy_helper.to_array(tensor).shape
                same = np.broadcast_to(np.float32(0.25), shape)
                tensor.CopyFrom(
                    onnx.numpy_helper.from_array(np.ascontiguousarray(same), tensor.name)
                )

    path = damaged(change, "even.onnx")
    options = ("--data", samples, *FEW, "--criterion", "weight", "--criterion", "random")
    outcome = cli("saliency", path, *options, "--per-layer")
    assert outcome.code == 0, outcome.err
    weight = rows(outcome.out)["weight"]
    assert weight[:2] == ["-", "-"]
    assert "conv1 (24 channels): weight -, random " in outcome.out
    found = strict(cli("saliency", path, *options, "--json").out)
    assert found["criteria"]["weight"]["per_layer"] is None
    assert found["criteria"]["weight"]["layers"] == dict.fromkeys(WIDTHS)
    assert found["criteria"]["random"]["per_layer"] is not None


def test_no_adjoint(
    cli: Callable[..., Any], refuse: Callable[..., Any], opaque: Path, samples: Path
) -> None:
    """All that work, with a note about every one that does not; asked for by name, an error."""
    outcome = cli("saliency", opaque, "--data", samples, *FEW)
    assert outcome.code == 0, outcome.err
    assert list(rows(outcome.out)) == [
        name for name in CRITERIA if name not in {*GRADIENTS, "oracle-abs"}
    ]
    said = " ".join(outcome.err.split())
    for name in GRADIENTS:
        assert f"note: {name}: criterion {name} needs gradients" in said
    assert said.count("Hardmax 'odd'") == 3
    found = strict(cli("saliency", opaque, "--data", samples, *FEW, "--json").out)
    assert list(found["refused"]) == GRADIENTS
    assert all(layer["fisher_trace"] is None for layer in found["layers"])
    words = ["taylor", "Hardmax 'odd'", "these criteria still work", "oracle-abs"]
    options = ("--data", samples, *FEW)
    refuse(3, "saliency", opaque, *options, "--criterion", "taylor", words=words)
    refuse(3, "saliency", opaque, *options, "--reference", "taylor", words=words)


@pytest.mark.parametrize("criterion", GRADIENTS)
@pytest.mark.parametrize("steps", ["", ",per_step=8"])
def test_prune_without_adjoint(
    refuse: Callable[..., Any], opaque: Path, samples: Path, criterion: str, steps: str
) -> None:
    """Nothing is written; operator, node and the criteria that work are named."""
    out = opaque.with_name("out.onnx")
    form = f"prune:criterion={criterion},channels=0.5{steps}"
    words = [criterion, "Hardmax 'odd'", "these criteria still work: weight"]
    options = ("--pass", form, "--gate", "off", "--max-drop", "100", "--data", samples)
    refuse(3, "compress", opaque, out, *options, words=words)
    assert not out.exists()


@pytest.mark.parametrize("criterion", ["mutual-information", *GRADIENTS, "oracle-abs"])
def test_prune(cli: Callable[..., Any], model: Path, labelled: Path, criterion: str) -> None:
    """By a criterion of every kind; what goes is what scores least in the study.

    With data for the verdict, all of --data is there to score on.
    """
    out = model.with_name("out.onnx")
    form = f"prune:criterion={criterion},channels=0.75"
    options = ("--pass", form, "--gate", "off", "--max-drop", "100")
    outcome = cli("compress", model, out, *options, "--data", labelled, "--eval", labelled)
    assert outcome.code == 0, outcome.err
    report = json.loads(out.with_name("out.onnx.report.json").read_text())
    kept = {c["node"]: c["setting"]["kept"] for c in report["plan"]["chosen"]}
    # The bound on accuracy may be spent before every layer had its turn.
    assert len(kept) >= 2
    assert all(len(channels) == 3 * WIDTHS[node] // 4 for node, channels in kept.items())
    study = strict(
        cli("saliency", model, "--data", labelled, "--criterion", criterion, "--json").out
    )
    for layer in study["layers"]:
        if layer["node"] not in kept:
            continue
        scores = np.array(layer["scores"][criterion])
        gone = np.setdiff1d(np.arange(len(scores)), kept[layer["node"]])
        assert scores[gone].max() <= scores[kept[layer["node"]]].min() * (1 + 1e-5) + 1e-12


def test_no_classes(
    cli: Callable[..., Any], refuse: Callable[..., Any], picture: Path, samples: Path
) -> None:
    outcome = cli("saliency", picture, "--data", samples, *FEW)
    assert outcome.code == 0, outcome.err
    without = {"mutual-information", "oracle-abs"}
    assert list(rows(outcome.out)) == [name for name in CRITERIA if name not in without]
    assert "note: mutual-information: " in outcome.err
    words = ["mutual-information", "class"]
    options = ("--data", samples)
    refuse(2, "saliency", picture, *options, "--criterion", "mutual-information", words=words)
    out = picture.with_name("out.onnx")
    form = "prune:criterion=mutual-information,channels=0.5"
    options = ("--data", samples, "--pass", form, "--gate", "off", "--max-drop", "100")
    refuse(2, "compress", picture, out, *options, words=words)


@pytest.mark.parametrize("criterion", ["mutual-information", *GRADIENTS, "oracle-abs"])
def test_prune_without_data(refuse: Callable[..., Any], model: Path, criterion: str) -> None:
    option = f"prune:criterion={criterion},channels=0.5"
    out = model.with_name("out.onnx")
    words = ["--data", "criterion=weight"]
    refuse(2, "compress", model, out, "--pass", option, "--gate", "off", words=words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--criterion", "taste"], ["'taste'", "taylor-gate"]),
        (["--reference", "taste"], ["'taste'", "oracle-abs"]),
        (["--samples", "0"], ["--samples"]),
        (["--oracle-samples", "-1"], ["--oracle-samples"]),
        (["--exclude", "nowhere"], ["'nowhere'"]),
        (["--exclude", "("], ["'('"]),
        (["--seed", "-1"], ["--seed"]),
    ],
)
def test_nonsense(
    refuse: Callable[..., Any], model: Path, samples: Path, options: list[str], words: list[str]
) -> None:
    refuse(2, "saliency", model, "--data", samples, *options, words=words)


def test_missing_data(refuse: Callable[..., Any], model: Path) -> None:
    refuse(2, "saliency", model, words=["--data"])
    refuse(4, "saliency", model, "--data", "nowhere.npz", words=["nowhere.npz"])


@pytest.mark.parametrize("label", [5, -1])
@pytest.mark.parametrize("criterion", [[], ["--criterion", "taylor"]])
def test_labels_that_are_no_classes(
    refuse: Callable[..., Any], model: Path, labelled: Path, label: int, criterion: list[str]
) -> None:
    with np.load(labelled) as arrays:
        x, y = arrays["x"], arrays["y"]
    y[17] = label
    np.savez(labelled, x=x, y=y)
    words = ["labelled.npz", str(label), "label"]
    refuse(4, "saliency", model, "--data", labelled, *criterion, words=words)


def test_nothing_to_score(
    refuse: Callable[..., Any], model: Path, samples: Path, tmp_path: Path
) -> None:
    options = ("--data", samples, "--exclude", "conv", "--exclude", "point")
    refuse(3, "saliency", model, *options, words=["no layer has channels that may go"])
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 3, 6, 7] x) => (float[N, 3, 6, 7] y) { [relu] y = Relu (x) }"""
    path = tmp_path / "relu.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    refuse(3, "saliency", path, "--data", samples, words=["no layer has channels that may go"])


def test_hash_order_is_no_matter(model: Path, labelled: Path) -> None:
    """The same bytes, whatever the order of hashes."""
    source = "from onnxcompress.cli import main; main()"
    options = ["saliency", model, "--data", labelled, *FEW, "--threads", "1", "--json"]
    found = []
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", source, *map(str, options)],
            capture_output=True,
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()
        found.append(strict(done.stdout.decode()))
    for part in ("criteria", "layers", "refused", "samples", "loss", "reference"):
        assert json.dumps(found[0][part]) == json.dumps(found[1][part])
