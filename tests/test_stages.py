"""Jobs in stages: what each is asked, what it begins with, and what the whole is judged against."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.config import Config
from onnxcompress.embedded import embedded
from onnxcompress.errors import BoundError, UsageError
from onnxcompress.graph.digest import model_digest
from onnxcompress.load.canonical import canonicalise
from onnxcompress.pipeline import run
from onnxcompress.plan.registry import parse_pass
from onnxcompress.runtime import Execution
from onnxcompress.stages import part, run_in_stages

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="no PyTorch: pip install 'onnxcompress[finetune]'",
)
DIGITS = embedded("digits_cnn.onnx")


@pytest.fixture
def config(quick: None) -> Config:
    with np.load(embedded("digits_train.npz")) as arrays:
        data = {"x": arrays["x"][:300]}
    with np.load(embedded("digits_test.npz")) as arrays:
        judged = {name: arrays[name][:200] for name in arrays}
    return Config(
        passes=(parse_pass("prune:criterion=activation-std"),),
        targets={"macs": 0.36},
        max_drop=100.0,
        data=data,
        eval_data=judged,
        execution=Execution(threads=1),
        stages=2,
    )


def test_what_stages_are_asked(config: Config, tmp_path: Path) -> None:
    asked = replace(
        config,
        targets={"macs": 0.125, "size": 0.5},
        stages=3,
        max_drop=2.0,
        finetune="7e",
        then="fp16",
        run=tmp_path,
    )
    first, second, last = (part(asked, number) for number in (1, 2, 3))
    assert first.targets == pytest.approx({"macs": 0.5, "size": 0.5 ** (1 / 3)})
    assert second.targets == pytest.approx({"macs": 0.25, "size": 0.5 ** (2 / 3)})
    assert last.targets == {"macs": 0.125, "size": 0.5}
    assert [one.finetune for one in (first, second, last)] == ["2e"] * 3
    assert [one.then for one in (first, second, last)] == [None, None, "fp16"]
    assert [one.max_drop for one in (first, second, last)] == [math.inf, math.inf, 2.0]
    assert len({one.run for one in (first, second, last)}) == 3


def test_two_stages(config: Config) -> None:
    """Both are judged against the original; the second rewrites what the first left."""
    result = run_in_stages(DIGITS, config)
    (first,) = result.report["stages"]
    digest = model_digest(canonicalise(onnx.load(DIGITS)).model)
    assert 0.36 < first["remaining"]["macs"] <= 0.6
    assert result.report["remaining"]["macs"] <= 0.36
    assert result.report["model"]["digest"] == first["model"]["digest"] == digest
    assert result.report["before"]["macs"] == first["before"]["macs"]
    assert result.report["before"]["metric"] == first["before"]["metric"]
    assert first["plan"]["model_digest"] == digest
    assert result.plan.model_digest != digest
    once = run(DIGITS, replace(config, stages=1, targets=dict(first["plan"]["targets"])))
    again = run(DIGITS, replace(config, stages=1), start=once.model)
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_a_stage_that_needs_nothing_more(config: Config) -> None:
    """What begins below the target is the result; it is no complaint that nothing more is saved."""
    small = run(DIGITS, replace(config, stages=1, targets={"macs": 0.3}))
    result = run(DIGITS, replace(config, stages=1), start=small.model)
    assert result.plan.empty
    assert result.report["remaining"]["macs"] == small.report["remaining"]["macs"]
    assert result.model.graph.node == small.model.graph.node


def test_one_stage_is_the_job_itself(config: Config) -> None:
    one = replace(config, stages=1)
    staged, plain = run_in_stages(DIGITS, one), run(DIGITS, one)
    assert staged.model.SerializeToString() == plain.model.SerializeToString()
    assert "stages" not in staged.report


def test_the_stage_that_fails_is_named(config: Config) -> None:
    asked = replace(config, passes=(parse_pass("tucker2"),), targets={"params": 1e-6})
    with pytest.raises(BoundError, match="stage 1 of 2: ") as caught:
        run_in_stages(DIGITS, asked)
    assert caught.value.report is not None


def test_the_bound_counts_at_the_end(config: Config) -> None:
    asked = replace(config, targets={"macs": 0.05}, max_drop=0.0, repair="off")
    with pytest.raises(BoundError, match=r"^bounds not met") as caught:
        run_in_stages(DIGITS, asked)
    assert caught.value.report is not None
    (first,) = caught.value.report["stages"]
    assert first["ok"]


def test_killed_and_started_again(config: Config, tmp_path: Path) -> None:
    asked = replace(config, run=tmp_path)
    first = run_in_stages(DIGITS, asked)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["stage-1", "stage-2"]
    again = run_in_stages(DIGITS, asked)
    assert again.model.SerializeToString() == first.model.SerializeToString()


@needs_torch
def test_training_is_shared(config: Config) -> None:
    """The second stage begins with what training made of the first."""
    asked = replace(config, targets={"macs": 0.1}, repair="off")
    result = run_in_stages(DIGITS, replace(asked, finetune="4e"))
    (first,) = result.report["stages"]
    for report in (first, result.report):
        assert report["finetune"]["improved"]
        assert len(report["finetune"]["epochs"]) == 2
    untrained = run_in_stages(DIGITS, asked)
    assert result.plan.model_digest != untrained.plan.model_digest
    assert result.verdict.accuracy.after.value > untrained.verdict.accuracy.after.value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": 0}, "at least 1"),
        ({"targets": {}}, "give --target"),
        ({"plan": Path("plan.json")}, "no --plan"),
        ({"finetune": "1e"}, "1 epochs cannot be shared by 2 stages"),
    ],
)
def test_refused(config: Config, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        replace(config, **changes)
