"""What a successful job leaves behind: OUT and its report, and IN as it was."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

FORM = ("--pass", "svd:rank=full", "--gate", "off")


def outputs(model: Path | bytes, x: np.ndarray) -> np.ndarray:
    source = str(model) if isinstance(model, Path) else model
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def inputs() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((2, 3, 6, 7)).astype(np.float32)


def test_lossless_form(
    cli: Callable[..., Any], model: Path, listing: Callable[[], dict[str, bytes]]
) -> None:
    before = listing()
    outcome = cli("compress", model, model.with_name("out.onnx"), *FORM)
    assert outcome.code == 0, outcome.err
    after = listing()
    assert after.pop("in.onnx") == before["in.onnx"]
    assert sorted(after) == ["out.onnx", "out.onnx.report.json"]
    result = onnx.load_from_string(after["out.onnx"])
    onnx.checker.check_model(result, full_check=True)
    original = onnx.load_from_string(before["in.onnx"])
    assert [n.name for n in result.graph.node if n.name.startswith("point")] == [
        "point_svd_in",
        "point_svd_out",
    ]
    assert list(result.graph.input) == list(original.graph.input)
    assert list(result.graph.output) == list(original.graph.output)
    x = inputs()
    expected, found = outputs(before["in.onnx"], x), outputs(after["out.onnx"], x)
    # A full-rank factorisation is exact; two products of 32 terms in float32 are not.
    bound = 64 * 32 * np.finfo(np.float32).eps * np.abs(expected).max()
    assert np.abs(found - expected).max() <= bound


def test_external_data(
    cli: Callable[..., Any], model: Path, listing: Callable[[], dict[str, bytes]]
) -> None:
    out, single = model.with_name("out.onnx"), model.with_name("single.onnx")
    assert cli("compress", model, out, "--save-as-external-data", *FORM).code == 0
    assert cli("compress", model, single, *FORM).code == 0
    files = set(listing())
    assert {"out.onnx", "out.onnx.data", "out.onnx.report.json"} <= files
    assert not [name for name in files if name.startswith((".", "tmp"))]
    light = onnx.load(out, load_external_data=False)
    outside = {
        entry.value
        for tensor in light.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert outside == {"out.onnx.data"}
    x = inputs()
    assert np.array_equal(outputs(out, x), outputs(single, x))
    # Read back as IN, and moved as a pair.
    again = cli("compress", out, model.with_name("again.onnx"), "--pass", "tucker2:rank=full",
                "--gate", "off")  # fmt: skip
    assert again.code == 0, again.err


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("external", [[], ["--save-as-external-data"]], ids=["one", "two"])
def test_permissions_follow_the_umask(
    cli: Callable[..., Any], model: Path, mask: int, external: list[str]
) -> None:
    previous = os.umask(mask)
    try:
        assert cli("compress", model, model.with_name("out.onnx"), *external, *FORM).code == 0
    finally:
        os.umask(previous)
    for path in model.parent.glob("out.onnx*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path.name


def test_force_replaces(cli: Callable[..., Any], model: Path) -> None:
    out = model.with_name("out.onnx")
    out.write_bytes(b"old")
    assert cli("compress", model, out, "--force", *FORM).code == 0
    onnx.load(out)


def test_report_elsewhere(
    cli: Callable[..., Any], model: Path, listing: Callable[[], dict[str, bytes]]
) -> None:
    report = model.with_name("told.json")
    assert cli("compress", model, model.with_name("out.onnx"), "--report", report, *FORM).code == 0
    assert sorted(listing()) == ["in.onnx", "out.onnx", "told.json"]
    assert json.loads(report.read_text())["version"] == 1


def test_exclusions_are_searched_in_node_names(cli: Callable[..., Any], model: Path) -> None:
    out = model.with_name("out.onnx")
    options = ["--pass", "tucker2:rank=8x8", "--pass", "svd:rank=4", "--gate", "off"]
    assert (
        cli("compress", model, out, *options, "--exclude", "^conv[12]$", "--exclude", "c$").code
        == 0
    )
    report = json.loads(out.with_name("out.onnx.report.json").read_text())
    rows = {row["node"]: row for row in report["layers"]}
    assert {name for name, row in rows.items() if row["pass"]} == {"point"}
    for name in ("conv1", "conv2", "fc"):
        assert "excluded by the user" in rows[name]["reason"]
    before, after = (nodes(path) for path in (model, out))
    for name in before.keys() - {"point"}:
        assert after[name] == before[name]


def nodes(model: Path) -> dict[str, Any]:
    return {
        node.name: (
            node.op_type,
            list(node.input),
            list(node.output),
            {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
        )
        for node in onnx.load(model).graph.node
    }


def test_json_is_the_report(cli: Callable[..., Any], model: Path) -> None:
    outcome = cli("compress", model, model.with_name("out.onnx"), "--json", *FORM)
    assert outcome.code == 0, outcome.err

    def reject(text: str) -> None:
        pytest.fail(f"{text} is not JSON")

    printed = json.loads(outcome.out, parse_constant=reject)
    assert printed == json.loads(model.with_name("out.onnx.report.json").read_text())
    assert printed["model"]["name"] == "in.onnx"


def test_a_metric_of_ones_own(
    cli: Callable[..., Any], model: Path, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score is the first output value of each sample: its mean is what the report tells."""
    model.with_name("first_value.py").write_text(
        "def score(outputs, labels):\n    assert labels is None\n    return outputs['y'][:, 0]\n"
    )
    monkeypatch.syspath_prepend(model.parent)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    options = ["--eval", samples, "--metric", "first_value:score", "--max-drop", "1e9"]
    outcome = cli("compress", model, model.with_name("out.onnx"), *options, *FORM, "--json")
    assert outcome.code == 0, outcome.err
    with np.load(samples) as arrays:
        expected = outputs(model, arrays["x"])[:, 0].astype(np.float64).mean()
    found = json.loads(outcome.out)["before"]["metric"]
    assert found["name"] == "first_value:score"
    assert found["n"] == 40
    # A mean of 40 values of float32, each with the rounding of about 1000 products.
    assert found["value"] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_everything_excluded(refuse: Callable[..., Any], model: Path) -> None:
    out = model.with_name("out.onnx")
    words = ["nothing could be gained", "excluded by the user"]
    refuse(1, "compress", model, out, "--exclude", "", *FORM, words=words)


@pytest.mark.parametrize("quiet", [[], ["-q"]], ids=["", "quiet"])
def test_standard_error_has_no_blank_lines(
    cli: Callable[..., Any], model: Path, quiet: list[str]
) -> None:
    good = cli("compress", model, model.with_name("out.onnx"), *FORM, *quiet)
    bad = cli("compress", model.with_name("nowhere.onnx"), model.with_name("x.onnx"), *quiet)
    assert good.err == ""
    assert bad.err.count("\n") == 1
    assert bad.err.startswith("onnxcompress: error: ")
