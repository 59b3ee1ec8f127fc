"""`--then`: converted, verified again, replayed from the plan file, or refused in time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

PASS = ("--pass", "tucker2:rank=8x8", "--gate", "off", "--max-drop", "100")


def kinds(path: Path) -> set[int]:
    return {tensor.data_type for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("fp16", onnx.TensorProto.FLOAT16), ("int8", onnx.TensorProto.INT8)],
)
def test_converted_and_replayed(
    cli: Callable[..., Any], model: Path, samples: Path, precision: str, kind: int
) -> None:
    """The result, what it says of itself, and the plan, which says what to convert to."""
    out, again = model.with_name("out.onnx"), model.with_name("again.onnx")
    outcome = cli("compress", model, out, *PASS, "--data", samples, "--then", precision)
    assert outcome.code == 0, outcome.err
    assert f"before conversion to {precision}: " in " ".join(outcome.out.split())
    onnx.checker.check_model(onnx.load(out), full_check=True)
    assert kind in kinds(out)
    report = json.loads(out.with_name("out.onnx.report.json").read_text())
    assert report["then"]["precision"] == precision
    plan = model.with_name("plan.json")
    plan.write_text(json.dumps(report["plan"]))
    replayed = cli("compress", model, again, "--plan", plan, "--gate", "off", "--data", samples,
                   "--max-drop", "100")  # fmt: skip
    assert replayed.code == 0, replayed.err
    assert again.read_bytes() == out.read_bytes()
    shown = cli("inspect", model, "--plan", plan)
    assert f"then {precision}" in " ".join(shown.out.split())


def test_a_plan_that_needs_inputs_or_converts_to_something_else(
    cli: Callable[..., Any], refuse: Callable[..., Any], model: Path, samples: Path
) -> None:
    out, plan = model.with_name("out.onnx"), model.with_name("plan.json")
    options = ("--data", samples, "--then", "int8", "--dry-run")
    assert cli("compress", model, out, *PASS, *options).code == 0
    values = json.loads(model.with_name("out.onnx.plan.json").read_text())
    # Weights alone say what the factors are, so that only the conversion needs inputs.
    for candidate in values["chosen"]:
        candidate["setting"]["metric"] = "weights"
    plan.write_text(json.dumps(values))
    refuse(2, "compress", model, out, "--plan", plan, words=["int8", "--data"])
    plan.write_text(json.dumps(values | {"then": "int4"}))
    refuse(2, "compress", model, out, "--plan", plan, words=["int4"])
