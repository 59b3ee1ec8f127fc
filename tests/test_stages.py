"""Jobs in stages: what each is asked, what it begins with, and what the whole is judged against."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress import stages
from onnxcompress.config import Config
from onnxcompress.embedded import embedded
from onnxcompress.errors import BoundError, UsageError
from onnxcompress.graph.digest import model_digest
from onnxcompress.load.canonical import canonicalise
from onnxcompress.pipeline import run
from onnxcompress.plan.registry import parse_pass
from onnxcompress.repairs import Repairs
from onnxcompress.report.build import json_safe
from onnxcompress.rewrite.manager import Rewritten
from onnxcompress.runtime import Execution
from onnxcompress.stages import part, run_in_stages
from onnxcompress.trial import CalibrationTrial

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
        targets={"macs": 0.125, "params": 0.5},
        stages=3,
        max_drop=2.0,
        finetune="7e",
        then="fp16",
        run=tmp_path,
    )
    first, second, last = (part(asked, number) for number in (1, 2, 3))
    assert first.targets == pytest.approx({"macs": 0.5, "params": 0.5 ** (1 / 3)})
    assert second.targets == pytest.approx({"macs": 0.25, "params": 0.5 ** (2 / 3)})
    assert last.targets == {"macs": 0.125, "params": 0.5}
    assert [one.finetune for one in (first, second, last)] == ["2e", "2e", "3e"]
    assert {one.latency_table for one in (first, second, last)} == {tmp_path / "latency.json"}
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


def test_what_a_stage_misses_the_next_makes_up_for(config: Config, log: Any) -> None:
    """Ranks alone do not go that far; the job fails in the end, and says what each came to."""
    asked = replace(config, passes=(parse_pass("tucker2"),), targets={"params": 1e-6})
    with pytest.raises(BoundError, match=r"^bounds not met") as caught:
        run_in_stages(DIGITS, asked, log)
    assert any(note.startswith("stage 1: params is at") for note in log.notes)
    assert caught.value.report is not None
    assert [one["ok"] for one in caught.value.report["stages"]] == [False]


def test_a_stage_without_anything_to_gain_is_left_out(config: Config, log: Any) -> None:
    """A first step so small that no candidate is that gentle."""
    owner = parse_pass("prune:channels=0.4")
    asked = replace(config, passes=(owner,), targets={"macs": 0.5}, exclude=(".*",))
    with pytest.raises(BoundError, match="nothing could be gained"):
        run_in_stages(DIGITS, asked, log)
    assert any(note.startswith("stage 1 is left out: nothing could be") for note in log.notes)


def test_the_bound_counts_at_the_end(config: Config) -> None:
    asked = replace(config, targets={"macs": 0.05}, max_drop=0.0, repair="off")
    with pytest.raises(BoundError, match=r"^bounds not met") as caught:
        run_in_stages(DIGITS, asked)
    assert caught.value.report is not None
    (first,) = caught.value.report["stages"]
    assert first["ok"]


def test_killed_and_started_again(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first stage found is not found again, and the bytes are those of one go."""
    whole = run_in_stages(DIGITS, config)
    asked = replace(config, run=tmp_path)
    tried: list[str] = []
    outcome, probing = CalibrationTrial._outcome, CalibrationTrial.probing

    def watched(self: CalibrationTrial, *arguments: Any) -> Any:
        tried.append(model_digest(self.model))
        return outcome(self, *arguments)

    def probes(self: CalibrationTrial) -> Any:
        tried.append(model_digest(self.model))
        return probing(self)

    def killed(self: Repairs, rewritten: Rewritten) -> Any:
        found = repaired(self, rewritten)
        if len(set(tried)) > 1:
            raise KeyboardInterrupt
        return found

    repaired = Repairs.__call__
    monkeypatch.setattr(CalibrationTrial, "_outcome", watched)
    monkeypatch.setattr(CalibrationTrial, "probing", probes)
    with monkeypatch.context() as patched:
        patched.setattr(Repairs, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            run_in_stages(DIGITS, asked)
    assert len(set(tried)) == 2
    tried.clear()
    again = run_in_stages(DIGITS, asked)
    assert again.model.SerializeToString() == whole.model.SerializeToString()
    assert not tried


def test_findings_of_another_original_are_not_believed(
    config: Config, tmp_path: Path, log: Any
) -> None:
    small = run(DIGITS, replace(config, stages=1, targets={"macs": 0.6})).model
    asked = replace(config, stages=1, run=tmp_path)
    first = run(DIGITS, asked, start=small)
    other = onnx.load(DIGITS)
    weight = next(t for t in other.graph.initializer if t.name == "fc.weight")
    values = onnx.numpy_helper.to_array(weight) * 1.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    run(DIGITS, asked, log, start=small)
    assert any("going on in" in note for note in log.notes)
    log.notes.clear()
    again = run(other, asked, log, start=small)
    assert not any("going on in" in note for note in log.notes)
    assert again.report["model"]["digest"] != first.report["model"]["digest"]


def test_a_plan_of_a_later_stage_is_not_replayed(config: Config, tmp_path: Path) -> None:
    result = run_in_stages(DIGITS, config)
    for number, plan in enumerate((result.report["plan"], result.plan.to_dict())):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(plan))
        with pytest.raises(UsageError, match="is of stage 2 of a job"):
            run(DIGITS, replace(config, stages=1, passes=(), plan=path))


def test_what_all_stages_took_is_added_up(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second whenever it is looked at."""
    seconds = itertools.count()
    monkeypatch.setattr("onnxcompress.progress.time.perf_counter", lambda: next(seconds))
    parts: list[dict[str, Any]] = []
    genuine = run

    def watched(*arguments: Any, **options: Any) -> Any:
        result = genuine(*arguments, **options)
        parts.append(json.loads(json.dumps(json_safe(result.report))))
        return result

    monkeypatch.setattr(stages, "run", watched)
    whole = run_in_stages(DIGITS, config).report
    first, last = parts
    for name in {*first["seconds"], *last["seconds"]}:
        both = first["seconds"].get(name, 0.0) + last["seconds"].get(name, 0.0)
        assert whole["seconds"][name] == both > 0, name
    consulted = [one["accuracy"]["consulted"] for one in parts]
    assert whole["accuracy"]["consulted"] == sum(consulted) > max(consulted)
    assert "allowed" not in first["accuracy"]["words"]
    assert first["accuracy"]["words"].endswith("points.")


def test_plans_of_all_stages_are_marked(config: Config) -> None:
    result = run_in_stages(DIGITS, replace(config, stages=3, targets={"macs": 0.2}))
    every = [one["plan"]["stage"] for one in (*result.report["stages"], result.report)]
    assert every == [1, 2, 3]
    assert result.plan.stage == 3


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
        ({"then": "int8", "targets": {"size": 0.2}}, "give macs or params"),
    ],
)
def test_refused(config: Config, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        replace(config, **changes)
