"""`onnxcompress search` from the command line: what it prints and writes, and what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from onnxcompress.cli import run
from onnxcompress.cli.root import cli
from onnxcompress.latency.interleave import Budget

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 6, 6] x) => (float[N, 4] y) {
    [a] a = Conv <pads = [1, 1, 1, 1]> (x, wa) [ra] a1 = Relu (a)
    [p] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a1)
    [c] c = Conv <pads = [1, 1, 1, 1]> (p, wc) [rc] c1 = Relu (c)
    [g] g = GlobalAveragePool (c1) [f] f = Flatten (g) [y] y = Gemm <transB = 1> (f, wy) }"""


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A model and data on disk, as arguments."""
    model = onnx.parser.parse_model(MODEL)
    generator = np.random.default_rng(0)
    for name, shape in {"wa": (8, 3, 3, 3), "wc": (12, 8, 3, 3), "wy": (4, 12)}.items():
        weight = 0.3 * generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(model, tmp_path / "net.onnx")
    images = generator.standard_normal((90, 3, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=images)
    return [
        *("search", str(tmp_path / "net.onnx"), str(tmp_path / "family")),
        *("--data", str(tmp_path / "data.npz"), "--executor", "serial", "--threads", "1"),
    ]


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    brief = Budget(rounds=2, seconds=0.0, min_runs=2, warmup_runs=1)
    monkeypatch.setattr("onnxcompress.search.driver.LONG", brief)
    monkeypatch.setattr("onnxcompress.search.driver.BRIEF", brief)


def test_a_search(files: list[str], tmp_path: Path) -> None:
    options = ["--ratios", "1,.5", "--round-to", "1", "--also", ".5,.5", "--candidates", "2"]
    result = CliRunner().invoke(cli, [*files, *options], catch_exceptions=False)
    assert result.exit_code == 0
    folder = tmp_path / "family"
    report = json.loads((folder / "search.json").read_text())
    rows = list(csv.DictReader((folder / "search.csv").open()))
    assert report["space"] == {"combinations": 4, "looked_at": 4}
    assert [row["file"] for row in rows] == [model["file"] for model in report["models"]]
    assert "c0.5-0.5.onnx" in {row["file"] for row in rows}
    for row, model in zip(rows, report["models"], strict=True):
        path = folder / row["file"]
        assert int(row["file_bytes"]) == path.stat().st_size == model["file_bytes"]
        assert float(row["latency"]) == next(iter(model["latency"].values()))["ratio"]
        assert [float(row["c_1"]), float(row["c_2"])] == model["ratios"]
        assert (folder / model["plan"]).exists()
        onnx.checker.check_model(onnx.load(path), full_check=True)
    assert sum(int(row["recommended"]) for row in rows) == 1
    assert report["recommended"] in result.output
    assert "of 4 combinations" in result.output
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_trained_networks(files: list[str], tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="no PyTorch: pip install 'onnxcompress[finetune]'")
    options = ["--ratios", "1,.5", "--round-to", "1", "--also", ".5,.5", "--candidates", "1"]
    outcome = CliRunner().invoke(cli, [*files, *options, "--finetune", "2e"])
    assert outcome.exit_code == 0, outcome.output
    report = json.loads((tmp_path / "family" / "search.json").read_text())
    assert all(len(model["finetune"]["epochs"]) == 2 for model in report["models"])


def test_json_on_standard_output(files: list[str]) -> None:
    options = ["--ratios", "1,.5", "--candidates", "1", "--round-to", "1", "--json", "--quiet"]
    result = CliRunner().invoke(cli, [*files, *options], catch_exceptions=False)
    assert json.loads(result.stdout)["version"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ratios", "half"], "is not of the form"),
        (["--ratios", "1,2"], "ratios lie above 0"),
        (["--segments", "stages"], "segments='stages'"),
        (["--segments", "0"], "segments=0"),
        (["--ranking", "luck"], "ranking='luck'"),
        (["--constraint", "c9 > 1"], "there is no 'c9'"),
        (["--constraint", "c1 > 1"], "allows no combination"),
        (["--also", "1"], "there are 2 superblocks"),
        (["--also", "1,.3"], "0.3 is none of 1-0.75-0.5-0.25"),
        (["--address", "here:1"], "goes with --executor ray"),
        (["--workers", "3"], "serial has one worker"),
    ],
)
def test_what_makes_no_sense(
    files: list[str], options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*files, "--round-to", "1", *options]) == 2
    assert words in capsys.readouterr().err


def test_a_constraint_that_leaves_the_network_as_it_is(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*files, "--round-to", "1", "--constraint", "c1 == 1 and c2 == 1"]) == 1
    assert "nothing but the network as it is" in capsys.readouterr().err


def test_without_matplotlib_a_note_says_why_there_is_no_plot(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing(name: str, *rest: Any, real: Callable[..., Any] = __import__) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr("builtins.__import__", missing)
    assert run([*files, "--ratios", "1,.5", "--candidates", "1", "--round-to", "1"]) == 0
    assert "pip install 'onnxcompress[plots]'" in capsys.readouterr().err
    assert not (tmp_path / "family" / "pareto.png").exists()
