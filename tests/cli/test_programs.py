"""Kernels as programs: written, replayed, shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.kernels.emission import DOMAIN
from onnxcompress.kernels.semantics import evaluate
from onnxcompress.kernels.text import read

KINDS = {
    "dictionary": "dsl:shared=kernels,count=4",
    "programs": "dsl:shared=kernels,source=predefined,price=0.3",
}


@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS.keys())
def test_written_replayed_and_shown(
    cli: Callable[..., Any], model: Path, samples: Path, spec: str
) -> None:
    out, again = model.with_name("out.onnx"), model.with_name("again.onnx")
    options = ("--gate", "off", "--max-drop", "100", "--min-snr", "-100")
    outcome = cli("compress", model, out, "--pass", spec, *options, "--data", samples)
    assert outcome.code == 0, outcome.err
    written = onnx.load(out)
    assert {function.domain for function in written.functions} == {DOMAIN}
    plan = model.with_name("plan.json")
    report = json.loads(out.with_name("out.onnx.report.json").read_text())
    plan.write_text(json.dumps(report["plan"]))
    replayed = cli("compress", model, again, "--plan", plan, *options, "--data", samples)
    assert replayed.code == 0, replayed.err
    assert again.read_bytes() == out.read_bytes()
    shown = json.loads(cli("inspect", out, "--programs", "--json").out)
    layers = [row for row in shown["layers"] if "programs" in row]
    calls = {node.name for node in written.graph.node if node.domain == DOMAIN}
    assert layers
    assert calls
    for row in layers:
        entries = {name: np.array(kernel) for name, kernel in row["entries"].items()}
        kernels = [evaluate(read(text), row["shape"][-1], entries) for text in row["programs"]]
        assert len(kernels) == row["shape"][0] * row["shape"][1]
        assert np.isfinite(kernels).all()
    assert "written" in cli("inspect", out, "--programs").out
    picture = model.with_name("kernels.png")
    assert cli("inspect", out, "--programs", "--picture", picture).code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_programs_that_would_make_the_file_larger_are_refused(
    cli: Callable[..., Any], model: Path, samples: Path
) -> None:
    """What a file holds as a dictionary is read as the weight that it makes, and would be again."""
    small, again = model.with_name("small.onnx"), model.with_name("again.onnx")
    options = ("--gate", "off", "--max-drop", "100", "--min-snr", "-100", "--data", samples)
    one = ("--pass", "dsl:shared=kernels,count=4", *options)
    first = cli("compress", model, small, *one, "--exclude", "conv1")
    assert first.code == 0, first.err
    assert small.stat().st_size < 0.6 * model.stat().st_size
    cli("compress", small, again, *one).refused(1, "size is at")
    assert not again.exists()


def test_compressibility_of_a_model_without_programs(cli: Callable[..., Any], model: Path) -> None:
    shown = json.loads(cli("inspect", model, "--programs", "--json").out)
    assert shown["layers"]
    for row in shown["layers"]:
        lengths = [row["length"][error] for error in ("0.01", "0.05", "0.1")]
        assert 0 < lengths[2] <= lengths[1] <= lengths[0] <= 1
        assert sum(row["shares"].values()) == pytest.approx(1.0)
    assert "%" in cli("inspect", model, "--programs").out
    picture = model.with_name("curves.png")
    assert cli("inspect", model, "--programs", "--picture", picture, "--json").code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    cli("inspect", model, "--picture", picture).refused(2, "--picture goes with --programs")


def test_programs_go_alone(refuse: Callable[..., Any], model: Path) -> None:
    refuse(2, "inspect", model, "--programs", "--pass", "svd", words=["--programs"])


def test_filters_compared_by_their_responses(
    cli: Callable[..., Any], model: Path, samples: Path
) -> None:
    shown = json.loads(cli("inspect", model, "--programs", "--data", samples, "--json").out)
    for row in shown["layers"]:
        left = [row["filters_left"][distance] for distance in ("0.3", "0.6", "0.9")]
        assert row["shape"][0] >= left[0] >= left[1] >= left[2] >= 1
    assert "filters left" in cli("inspect", model, "--programs", "--data", samples).out
    picture = model.with_name("trees.png")
    options = ("--programs", "--data", samples, "--picture", picture)
    assert cli("inspect", model, *options).code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    cli("inspect", model, "--data", samples).refused(2, "--data goes with --programs")
    options = ("--programs", "--data", "random")
    cli("inspect", model, *options).refused(2, "real inputs")
    cli("inspect", model, "--programs", "--preprocess", "scale=1").refused(2, "goes with --data")
