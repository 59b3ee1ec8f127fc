"""Plans as files: written by --dry-run, replayed to the same bytes by --plan, or refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.latency.interleave import Timing

Json = dict[str, Any]


@pytest.fixture
def plan(cli: Callable[..., Any], model: Path) -> Path:
    """A plan for IN with one Tucker-2 and one SVD rewrite."""
    passes = ["--pass", "tucker2:rank=8x8", "--pass", "svd:rank=8"]
    outcome = cli("compress", model, model.with_name("out.onnx"), "--dry-run", *passes,
                  "--exclude", "conv1", "--gate", "off")  # fmt: skip
    assert outcome.code == 0, outcome.err
    path = model.with_name("out.onnx.plan.json")
    assert [path.name for path in model.parent.iterdir() if path != model] == [path.name]
    return path


def replay(cli: Callable[..., Any], model: Path, plan: Path, *options: str) -> Any:
    out = model.with_name("out.onnx")
    return cli("compress", model, out, "--plan", plan, "--gate", "off", "-q", *options)


def test_what_a_dry_run_writes(plan: Path) -> None:
    values = json.loads(plan.read_text())
    assert values["version"] == 1
    assert [(c["node"], c["pass"]) for c in values["chosen"]] == [
        ("conv2", "tucker2"),
        ("point", "svd"),
    ]
    assert values["chosen"][0]["setting"] == {
        "rank_out": 8,
        "rank_in": 8,
        "triple": False,
        "metric": "weights",
    }
    # 24 -> 8 -> 8 -> 32 channels on 6 x 7 positions.
    after = 42 * (24 * 8 + 8 * 8 * 9 + 8 * 32)
    assert values["chosen"][0]["before"]["macs"] == 42 * 32 * 24 * 9
    assert values["chosen"][0]["after"]["macs"] == after
    assert {refusal["node"] for refusal in values["refusals"]} >= {"conv1", "fc"}


def test_replayed_to_the_same_bytes(cli: Callable[..., Any], model: Path, plan: Path) -> None:
    direct = model.with_name("direct.onnx")
    passes = ["--pass", "tucker2:rank=8x8", "--pass", "svd:rank=8", "--exclude", "conv1"]
    assert cli("compress", model, direct, *passes, "--gate", "off").code == 0
    outcome = replay(cli, model, plan)
    assert outcome.code == 0, outcome.err
    assert model.with_name("out.onnx").read_bytes() == direct.read_bytes()


def test_inspected(cli: Callable[..., Any], model: Path, plan: Path) -> None:
    """What it would do, layer by layer, in a table and as JSON; and for other weights as well."""
    shown = cli("inspect", model, "--plan", plan)
    assert shown.code == 0, shown.err
    words = " ".join(shown.out.split())
    assert "made for this very model; asked: no target; gate off" in words
    assert "2 rewrites; " in words
    listed = cli("inspect", model, "--plan", plan, "--json")
    rows = {row["node"]: row for row in json.loads(listed.out)["rewrites"]}
    assert set(rows) == {"conv2", "point"}
    assert rows["conv2"]["what"] in words
    after = 42 * (24 * 8 + 8 * 8 * 9 + 8 * 32)
    assert rows["conv2"]["macs"] == [42 * 32 * 24 * 9, after]

    other = onnx.load(model)
    values = onnx.numpy_helper.to_array(other.graph.initializer[0]) * 2
    other.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(values, other.graph.initializer[0].name)
    )
    onnx.save(other, model.with_name("retrained.onnx"))
    shown = cli("inspect", model.with_name("retrained.onnx"), "--plan", plan)
    assert "made for other weights of this architecture" in " ".join(shown.out.split())


def test_inspected_for_another_network(
    cli: Callable[..., Any], model: Path, plan: Path, tmp_path: Path
) -> None:
    other = onnx.load(model)
    for node in other.graph.node:
        node.name = f"{node.name}_b"
    onnx.save(other, tmp_path / "other.onnx")
    shown = cli("inspect", tmp_path / "other.onnx", "--plan", plan)
    assert shown.code == 2
    assert "another architecture" in shown.err
    assert cli("inspect", model, "--plan", plan, "--pass", "svd").code == 2
    assert cli("inspect", model, "--plan", tmp_path / "none.json").code == 2


def test_the_plan_in_a_report_can_be_replayed(
    cli: Callable[..., Any], model: Path, samples: Path
) -> None:
    first = model.with_name("first.onnx")
    options = ["--data", samples, "--target", "macs=0.5", "--gate", "off"]
    assert cli("compress", model, first, *options).code == 0
    report = json.loads(first.with_name("first.onnx.report.json").read_text())
    path = model.with_name("taken.json")
    path.write_text(json.dumps(report["plan"]))
    outcome = replay(cli, model, path, "--data", samples)
    assert outcome.code == 0, outcome.err
    assert model.with_name("out.onnx").read_bytes() == first.read_bytes()


def test_a_plan_made_from_data_needs_it(
    refuse: Callable[..., Any], cli: Callable[..., Any], model: Path, samples: Path
) -> None:
    out = model.with_name("out.onnx")
    options = ["--pass", "tucker2:rank=8x8", "--data", samples, "--gate", "off", "--dry-run"]
    assert cli("compress", model, out, *options).code == 0
    plan = out.with_name("out.onnx.plan.json")
    refuse(2, "compress", model, out, "--plan", plan, "--gate", "off", words=["conv2", "--data"])


def test_a_retrained_model_takes_the_plan(
    cli: Callable[..., Any], damaged: Callable[..., Path], plan: Path
) -> None:
    """Other weights, same nodes."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)[::-1].copy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    source = damaged(change, "retrained.onnx")
    outcome = replay(cli, source, plan)
    assert outcome.code == 0, outcome.err
    names = {node.name for node in onnx.load(source.with_name("out.onnx")).graph.node}
    assert {"conv2_tucker_core", "point_svd_out", "conv1", "fc"} <= names


def test_a_plan_for_another_architecture(
    refuse: Callable[..., Any], damaged: Callable[..., Path], plan: Path
) -> None:
    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.name = f"block.{node.name}"

    source = damaged(rename, "other.onnx")
    words = ["'conv2'", "another architecture"]
    out = source.with_name("x.onnx")
    refuse(2, "compress", source, out, "--plan", plan, "--gate", "off", words=words)


def test_targets_count_for_a_replay(cli: Callable[..., Any], model: Path, plan: Path) -> None:
    replay(cli, model, plan, "--target", "macs=0.01").refused(1, "bounds not met", "macs")
    assert not model.with_name("out.onnx").exists()


def edited(plan: Path, change: Callable[[Json], object]) -> Path:
    values = json.loads(plan.read_text())
    change(values)
    plan.write_text(json.dumps(values))
    return plan


MALFORMED: dict[str, Callable[[Json], object]] = {
    "other version": lambda p: p.update(version=2),
    "no passes": lambda p: p.pop("passes"),
    "no choice": lambda p: p.pop("chosen"),
    "unknown pass": lambda p: p["passes"][0].update(name="nobody"),
    "unknown option": lambda p: p["passes"][0]["options"].update(width=3),
    "pass not listed": lambda p: p["passes"].pop(0),
    "no setting": lambda p: p["chosen"][0].pop("setting"),
    "foreign setting": lambda p: p["chosen"][0].update(setting={"rank": 8}),
    "setting in words": lambda p: p["chosen"][0]["setting"].update(rank_out="many"),
    "no cost": lambda p: p["chosen"][0].pop("after"),
    "damage in words": lambda p: p["chosen"][0].update(damage="some"),
    "choice is text": lambda p: p.update(chosen=["conv2"]),
    "passes is a number": lambda p: p.update(passes=3),
    "options is text": lambda p: p["passes"][0].update(options="none"),
    "unknown node": lambda p: p["chosen"][0].update(node="conv9", touches=["conv9"]),
    "node twice": lambda p: p["chosen"].append(p["chosen"][0]),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_plans(
    refuse: Callable[..., Any], model: Path, plan: Path, change: Callable[[Json], object]
) -> None:
    path = edited(plan, change)
    out = model.with_name("out.onnx")
    refuse(2, "compress", model, out, "--plan", path, "--gate", "off", "-q")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"no plan", b"\xff\xfe", b"[" * 100_000])
def test_no_plan_at_all(refuse: Callable[..., Any], model: Path, content: bytes) -> None:
    path = model.with_name("plan.json")
    path.write_bytes(content)
    out = model.with_name("out.onnx")
    refuse(2, "compress", model, out, "--plan", path, "--gate", "off", words=["plan.json"])


def too_much(values: Json) -> None:
    """A rank that conv2 does not have: the rewrite fails and is rolled back."""
    values["chosen"][0]["setting"]["rank_out"] = 999


def test_a_rolled_back_rewrite_is_reported(
    cli: Callable[..., Any], model: Path, plan: Path
) -> None:
    assert replay(cli, model, edited(plan, too_much)).code == 0
    report = json.loads(model.with_name("out.onnx.report.json").read_text())
    rows = {row["node"]: row for row in report["layers"]}
    assert {name for name, row in rows.items() if row["pass"]} == {"point"}
    assert "rolled back" in rows["conv2"]["reason"]
    assert [choice["node"] for choice in report["plan"]["chosen"]] == ["point"]


def test_nothing_is_written_when_everything_was_rolled_back(
    refuse: Callable[..., Any], model: Path, plan: Path
) -> None:
    def change(values: Json) -> None:
        too_much(values)
        del values["chosen"][1:]

    path = edited(plan, change)
    out = model.with_name("out.onnx")
    words = ["nothing could be gained", "rolled back"]
    refuse(1, "compress", model, out, "--plan", path, "--gate", "off", "-q", words=words)


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every rewrite is faster, by more or less each time; how many models each call timed."""
    generator, calls = np.random.default_rng(), list[int]()

    def layers(models: list[Any], *_arguments: Any, **_options: Any) -> list[Timing]:
        calls.append(len(models))
        times = [10.0, *generator.uniform(1.0, 9.0, len(models) - 1)]
        return [Timing(((time,), (time,), (time,))) for time in times]

    def network(models: list[Any], *_arguments: Any, **_options: Any) -> list[Timing]:
        return [Timing(((1.0,), (1.0,), (1.0,)))] * len(models)

    monkeypatch.setattr("onnxcompress.latency.table.interleaved", layers)
    monkeypatch.setattr("onnxcompress.verify.speed.interleaved", network)
    return calls


@pytest.mark.usefixtures("timings")
def test_what_a_run_leaves_in_its_folder(
    cli: Callable[..., Any], model: Path, samples: Path
) -> None:
    folder = model.with_name("run")
    outcome = cli("compress", model, model.with_name("a.onnx"), "--run", folder, "--data", samples)
    assert outcome.code == 0, outcome.err
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["journal.jsonl", "latency.json", "models", "moments", "plan.json"]


def test_the_same_latency_table_gives_the_same_bytes(
    cli: Callable[..., Any], model: Path, samples: Path, timings: list[int]
) -> None:
    """The second job must take all the timings from the table."""
    folder, results = model.with_name("run"), []
    for name in ("a.onnx", "b.onnx"):
        out = model.with_name(name)
        outcome = cli("compress", model, out, "--run", folder, "--data", samples)
        assert outcome.code == 0, outcome.err
        results.append((out.read_bytes(), (folder / "plan.json").read_bytes(), len(timings)))
        # The table alone is what is left of the first job.
        (folder / "journal.jsonl").unlink()
        shutil.rmtree(folder / "models")
    assert results[0] == results[1]
    assert timings


def test_bytes_do_not_depend_on_the_hash_seed(
    start: Callable[..., subprocess.Popen[bytes]], model: Path, samples: Path
) -> None:
    options = ["--data", samples, "--target", "macs=0.5", "--gate", "off", "--threads", "1"]
    processes = [
        start("compress", model, f"{n}.onnx", *options, environment={"PYTHONHASHSEED": n})
        for n in "12"
    ]
    for process in processes:
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors.decode()
    first, second = (model.with_name(f"{n}.onnx").read_bytes() for n in "12")
    assert first == second


def test_a_replay_is_judged_as_the_plan_was(cli: Callable[..., Any], model: Path) -> None:
    """A plan made with the gate off may be slower; replayed, it may be so again."""
    form = ("--pass", "tucker2:rank=full", "--gate", "off")
    direct, replayed = model.with_name("direct.onnx"), model.with_name("replayed.onnx")
    assert cli("compress", model, direct, *form).code == 0
    assert cli("compress", model, replayed, *form, "--dry-run").code == 0
    plan = model.with_name("replayed.onnx.plan.json")
    assert json.loads(plan.read_text())["gate"] is False
    assert cli("compress", model, replayed, "--plan", plan).code == 0
    assert replayed.read_bytes() == direct.read_bytes()


def test_excluded_nodes_are_not_replayed(
    refuse: Callable[..., Any], model: Path, plan: Path
) -> None:
    node = json.loads(plan.read_text())["chosen"][0]["node"]
    out = model.with_name("out.onnx")
    refuse(2, "compress", model, out, "--plan", plan, "--exclude", f"^{node}$", words=[node])


def test_an_exclusion_that_matches_nothing(refuse: Callable[..., Any], model: Path) -> None:
    out = model.with_name("out.onnx")
    refuse(2, "compress", model, out, "--exclude", "nothere", words=["nothere", "no node"])
