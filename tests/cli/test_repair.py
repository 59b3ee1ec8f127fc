"""Repair, and what goes with it, from the command line: options, report, and made-up inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

TUCKER = ("--pass", "tucker2:rank=6x6", "--gate", "off", "--max-drop", "100")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """200 inputs for the tiny model: enough to fit 32 unknowns on."""
    path = tmp_path / "many.npz"
    x = np.random.default_rng(4).standard_normal((200, 3, 6, 7))
    np.savez(path, x=x.astype(np.float32))
    return path


def reported(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(out.with_name(out.name + ".report.json").read_text())
    return values


def snr(report: dict[str, Any]) -> float:
    return min(float(output["snr_db"]) for output in report["fidelity"]["outputs"])


def test_what_repair_does(cli: Callable[..., Any], model: Path, many: Path) -> None:
    """It is on by default, comes closer than scales alone, which come closer than nothing."""
    found = {}
    for method in ("refit", "scale", "off"):
        out = model.with_name(f"{method}.onnx")
        options = () if method == "refit" else ("--repair", method)
        outcome = cli("compress", model, out, *TUCKER, "--data", many, *options)
        assert outcome.code == 0, outcome.err
        onnx.checker.check_model(onnx.load(out), full_check=True)
        found[method] = reported(out)
    assert found["off"]["repair"] is None
    assert snr(found["refit"]) > snr(found["scale"]) >= snr(found["off"])
    for method in ("refit", "scale"):
        repair = found[method]["repair"]
        assert repair["method"] == method
        # A tenth of the 200 is held out for the verdict.
        assert repair["samples"] == 180
        done = {row["node"]: row for row in repair["layers"]}
        assert {"conv2_tucker_out", "point", "fc"} <= set(done)
        assert "conv1" not in done
        for row in done.values():
            assert row["method"] in {method, "kept"}
            assert 0 <= row["error_after"] <= row["error_before"]
    assert {"load", "plan", "rewrite", "repair"} <= set(found["refit"]["seconds"])


def test_fewer_samples(cli: Callable[..., Any], model: Path, many: Path) -> None:
    out = model.with_name("out.onnx")
    outcome = cli("compress", model, out, *TUCKER, "--data", many, "--samples", "25")
    assert outcome.code == 0, outcome.err
    assert reported(out)["repair"]["samples"] == 25
    # 25 rows for the 32 inputs of the dense layer: said on the way, and in the report.
    assert "more calibration inputs help" in outcome.err
    (words,) = reported(out)["repair"]["notes"]
    assert "'fc'" in words or "layers" in words


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--repair", "twice", ["repair", "refit"]), ("--samples", "0", ["samples"])],
)
def test_options_that_make_no_sense(
    cli: Callable[..., Any], model: Path, samples: Path, option: str, value: str, words: list[str]
) -> None:
    out = model.with_name("out.onnx")
    outcome = cli("compress", model, out, *TUCKER, "--data", samples, option, value)
    assert outcome.code == 2
    for word in words:
        assert word in outcome.err
    assert not out.exists()


def test_inputs_that_are_made_up(cli: Callable[..., Any], model: Path) -> None:
    out = model.with_name("out.onnx")
    outcome = cli("compress", model, out, *TUCKER, "--data", "random:50")
    assert outcome.code == 0, outcome.err
    assert "synthetic" in outcome.err
    assert "NOT verified" in outcome.out
    report = reported(out)
    assert report["data"]["synthetic"] is True
    assert report["data"]["calibration"]["samples"] == 50
    assert report["accuracy"]["verified"] is False
    assert report["repair"]["samples"] == 50


def test_made_up_inputs_beside_real_ones_to_judge_by(
    cli: Callable[..., Any], model: Path, samples: Path
) -> None:
    out = model.with_name("out.onnx")
    outcome = cli("compress", model, out, *TUCKER, "--data", "random", "--eval", samples)
    assert outcome.code == 0, outcome.err
    report = reported(out)
    assert report["accuracy"]["verified"] is True
    assert report["data"]["verdict"]["samples"] == 40


def test_made_up_inputs_of_an_open_size(
    refuse: Callable[..., Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 3, H, W] x) => (float[N, 24, H, W] y) {
        y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w) }"""
    network = onnx.parser.parse_model(text)
    network.graph.node[0].name = "only"
    weight = np.random.default_rng(1).standard_normal((24, 3, 3, 3)).astype(np.float32)
    network.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(network, source)
    options = ("--pass", "tucker2:rank=8x2", "--gate", "off", "--min-snr", "-50",
               "--data", "random:20")  # fmt: skip
    refuse(4, "compress", source, out, *options, words=["'x'", "open dimensions", "--shape"])
    outcome = cli("compress", source, out, *options, "--shape", "x:1,3,6,7")
    assert outcome.code == 0, outcome.err


def test_ranks_by_nuclear_norm(cli: Callable[..., Any], model: Path, samples: Path) -> None:
    """The stronger the penalty, the fewer components; 8 directions of conv2 are no noise."""
    ranks = []
    for fraction in ("0.001", "0.3"):
        out = model.with_name(f"{fraction}.onnx")
        form = f"tucker2:rank=nuclear:{fraction}"
        options = ("--pass", form, *TUCKER[2:], "--data", samples, "--exclude", "conv1")
        outcome = cli("compress", model, out, *options)
        assert outcome.code == 0, outcome.err
        (chosen,) = reported(out)["plan"]["chosen"]
        assert chosen["setting"]["rank_in"] == 24
        ranks.append(chosen["setting"]["rank_out"])
    assert 0 < ranks[1] < 8 <= ranks[0] < 32


@pytest.mark.parametrize("rank", ["nuclear:0", "nuclear:2", "nuclear:much"])
def test_nuclear_fractions_that_make_no_sense(
    refuse: Callable[..., Any], model: Path, samples: Path, rank: str
) -> None:
    out = model.with_name("out.onnx")
    words = ["tucker2", rank, "between 0 and 1"]
    refuse(2, "compress", model, out, "--pass", f"tucker2:rank={rank}", "--data", samples,
           words=words)  # fmt: skip


def test_column_selection_end_to_end(cli: Callable[..., Any], model: Path, samples: Path) -> None:
    """`lnr` costs less than `prune` at the same widths, before repair already."""
    found = {}
    for name in ("prune", "lnr"):
        out = model.with_name(f"{name}.onnx")
        options = ("--pass", f"{name}:channels=0.5", *TUCKER[2:], "--data", samples)
        assert cli("compress", model, out, *options).code == 0
        found[name] = reported(out)
        assert [check["pass"] for check in found[name]["self_check"]] == [name]
    assert snr(found["lnr"]) > snr(found["prune"])
    widths = [
        {c["node"]: len(c["setting"]["kept"]) for c in report["plan"]["chosen"]}
        for report in found.values()
    ]
    assert widths[0] == widths[1] == {"conv1": 12, "conv2": 16, "point": 16}
