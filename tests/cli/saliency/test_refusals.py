"""What `saliency`, and `prune` by such criteria, refuse from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

GRADIENTS = ["obd", "taylor", "taylor-gate"]


def test_no_adjoint(
    said: Any, cli: Callable[..., Any], refuse: Callable[..., Any], opaque: Path, samples: Path
) -> None:
    """All that work, with a note about every one that does not; asked for by name, an error."""
    outcome = cli("saliency", opaque, "--data", samples, *said.few)
    assert outcome.code == 0, outcome.err
    assert list(said.rows(outcome.out)) == [
        name for name in said.criteria if name not in {*said.gradients, "oracle-abs"}
    ]
    notes = " ".join(outcome.err.split())
    for name in said.gradients:
        assert f"note: {name}: criterion {name} needs gradients" in notes
    assert notes.count("Hardmax 'odd'") == 3
    found = said.strict(cli("saliency", opaque, "--data", samples, *said.few, "--json").out)
    assert tuple(found["refused"]) == said.gradients
    assert all(layer["fisher_trace"] is None for layer in found["layers"])
    words = ["taylor", "Hardmax 'odd'", "these criteria still work", "oracle-abs"]
    options = ("--data", samples, *said.few)
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


def test_no_classes(
    said: Any, cli: Callable[..., Any], refuse: Callable[..., Any], picture: Path, samples: Path
) -> None:
    outcome = cli("saliency", picture, "--data", samples, *said.few)
    assert outcome.code == 0, outcome.err
    without = {"mutual-information", "oracle-abs"}
    assert list(said.rows(outcome.out)) == [name for name in said.criteria if name not in without]
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
        (["--exclude", "nowhere"], ["'nowhere'", "no layer that is scored"]),
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
