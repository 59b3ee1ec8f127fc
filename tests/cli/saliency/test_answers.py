"""`saliency` from the command line: tables, JSON; and `prune` by such criteria."""

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

GRADIENTS = ["obd", "taylor", "taylor-gate"]
WIDTHS = {"conv1": 24, "conv2": 32, "point": 32}


def ranks(values: list[float]) -> np.ndarray:
    """From 1, ties sharing the mean."""
    return np.array(
        [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]
    )


def spearman(one: list[float], other: list[float]) -> float:
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def test_table(said: Any, cli: Callable[..., Any], model: Path, labelled: Path) -> None:
    """A row for every criterion but the reference, with four figures between -1 and 1."""
    outcome = cli("saliency", model, "--data", labelled, *said.few)
    assert outcome.code == 0, outcome.err
    table = said.rows(outcome.out)
    assert list(table) == [name for name in said.criteria if name != "oracle-abs"]
    for figures in table.values():
        assert len(figures) == 4
        assert all(-1.0 <= float(figure) <= 1.0 for figure in figures)
    assert "in.onnx: rank correlation with oracle-abs" in outcome.out
    assert "88 channels of 3 layers; 12 samples, oracle on 6" in outcome.out
    assert "loss against labels" in outcome.out
    assert "conv1 (24 channels)" not in outcome.out


def test_json(said: Any, cli: Callable[..., Any], model: Path, labelled: Path) -> None:
    """Every score, from which every correlation follows; the table shows the same."""
    outcome = cli("saliency", model, "--data", labelled, *said.few, "--seed", "7", "--json")
    assert outcome.code == 0, outcome.err
    found = said.strict(outcome.out)
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
        assert set(layer["scores"]) == set(said.criteria)
        for line in layer["scores"].values():
            assert len(line) == WIDTHS[layer["node"]]
            assert all(isinstance(score, float) for score in line)
    assert set(found["criteria"]) == set(said.criteria) - {"oracle-abs"}
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
    table = said.rows(cli("saliency", model, "--data", labelled, *said.few, "--seed", "7").out)
    names = ("per_layer", "worst_layer", "all_layers", "all_layers_l2")
    for name, figures in table.items():
        assert figures == [f"{found['criteria'][name][key]:.2f}" for key in names]


def test_per_layer(said: Any, cli: Callable[..., Any], model: Path, samples: Path) -> None:
    chosen = ("--criterion", "weight", "--criterion", "taylor")
    options = ("--data", samples, *said.few, *chosen)
    outcome = cli("saliency", model, *options, "--per-layer")
    assert outcome.code == 0, outcome.err
    assert "loss against the network's own classes" in outcome.out
    found = said.strict(cli("saliency", model, *options, "--json").out)
    assert found["loss"] == "the network's own classes"
    said = outcome.out.splitlines()[-3:]
    assert said == [
        f"{node} ({width} channels): "
        + ", ".join(f"{n} {found['criteria'][n]['layers'][node]:.2f}" for n in ("weight", "taylor"))
        for node, width in WIDTHS.items()
    ]


def test_reference(said: Any, cli: Callable[..., Any], model: Path, samples: Path) -> None:
    """Any criterion; the others are compared with it, and it is not compared with itself."""
    options = ("--data", samples, "--criterion", "activation-std", "--criterion", "weight")
    outcome = cli("saliency", model, *options, "--reference", "weight", "--json")
    assert outcome.code == 0, outcome.err
    found = said.strict(outcome.out)
    assert found["reference"] == "weight"
    assert list(found["criteria"]) == ["activation-std"]
    assert {tuple(layer["scores"]) for layer in found["layers"]} == {("activation-std", "weight")}
    shown = cli("saliency", model, *options, "--reference", "weight").out
    assert "rank correlation with weight" in shown
    assert "loss against" not in shown


def test_only_what_was_measured_is_said(
    said: Any, cli: Callable[..., Any], model: Path, samples: Path
) -> None:
    """Samples of an oracle that was not asked for are not claimed."""
    options = ("--data", samples, *said.few, "--criterion", "taylor", "--reference", "taylor-gate")
    shown = cli("saliency", model, *options).out
    assert "12 samples; loss against the network's own classes" in shown
    found = said.strict(cli("saliency", model, *options, "--json").out)
    assert (found["samples"], found["oracle_samples"]) == (12, 0)


def test_exclude(said: Any, cli: Callable[..., Any], model: Path, samples: Path) -> None:
    options = (
        "--data",
        samples,
        *said.few,
        "--criterion",
        "taylor",
        "--exclude",
        "^conv",
        "--json",
    )
    found = said.strict(cli("saliency", model, *options).out)
    assert [layer["node"] for layer in found["layers"]] == ["point"]


def test_seed(said: Any, cli: Callable[..., Any], model: Path, samples: Path) -> None:
    """Of the samples that are taken, and of chance; the same seed gives the same text."""
    options = (
        "--data",
        samples,
        *said.few,
        "--criterion",
        "random",
        "--criterion",
        "taylor",
        "--json",
    )
    one, again, other = (cli("saliency", model, *options, "--seed", s).out for s in "334")
    assert said.strict(one)["layers"] == said.strict(again)["layers"]
    assert said.strict(one)["environment"]["seed"] == 3
    for first, second in zip(said.strict(one)["layers"], said.strict(other)["layers"], strict=True):
        for name in ("random", "taylor", "oracle-abs"):
            assert first["scores"][name] != second["scores"][name]


def test_quiet(said: Any, cli: Callable[..., Any], model: Path, samples: Path) -> None:
    """The result alone; nothing on standard error."""
    options = ("--data", samples, *said.few, "--criterion", "taylor")
    quiet = cli("saliency", model, *options, "--quiet")
    assert (quiet.code, quiet.err) == (0, "")
    assert quiet.out == cli("saliency", model, *options).out


def test_scores_that_are_all_equal(
    said: Any, cli: Callable[..., Any], damaged: Callable[..., Path], samples: Path
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
    options = ("--data", samples, *said.few, "--criterion", "weight", "--criterion", "random")
    outcome = cli("saliency", path, *options, "--per-layer")
    assert outcome.code == 0, outcome.err
    weight = said.rows(outcome.out)["weight"]
    assert weight[:2] == ["-", "-"]
    assert "conv1 (24 channels): weight -, random " in outcome.out
    found = said.strict(cli("saliency", path, *options, "--json").out)
    assert found["criteria"]["weight"]["per_layer"] is None
    assert found["criteria"]["weight"]["layers"] == dict.fromkeys(WIDTHS)
    assert found["criteria"]["random"]["per_layer"] is not None


@pytest.mark.parametrize("criterion", ["mutual-information", *GRADIENTS, "oracle-abs"])
def test_prune(
    said: Any, cli: Callable[..., Any], model: Path, labelled: Path, criterion: str
) -> None:
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
    study = said.strict(
        cli("saliency", model, "--data", labelled, "--criterion", criterion, "--json").out
    )
    for layer in study["layers"]:
        if layer["node"] not in kept:
            continue
        scores = np.array(layer["scores"][criterion])
        gone = np.setdiff1d(np.arange(len(scores)), kept[layer["node"]])
        assert scores[gone].max() <= scores[kept[layer["node"]]].min() * (1 + 1e-5) + 1e-12


def test_hash_order_is_no_matter(said: Any, model: Path, labelled: Path) -> None:
    """The same bytes, whatever the order of hashes."""
    source = "from onnxcompress.cli import main; main()"
    options = ["saliency", model, "--data", labelled, *said.few, "--threads", "1", "--json"]
    found = []
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", source, *map(str, options)],
            capture_output=True,
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()
        found.append(said.strict(done.stdout.decode()))
    for part in ("criteria", "layers", "refused", "samples", "loss", "reference"):
        assert json.dumps(found[0][part]) == json.dumps(found[1][part])
