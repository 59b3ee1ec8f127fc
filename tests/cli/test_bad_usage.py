"""Options that make no sense: exit code 2 and one line that says which, before any work."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NONSENSE = {
    "unknown pass": (["--pass", "tuckr2"], ["'tuckr2'", "tucker2"]),
    "unnamed pass": (["--pass", ""], []),
    "unknown pass option": (["--pass", "svd:rnk=4"], ["'rnk'", "rank"]),
    "pass option without value": (["--pass", "svd:rank"], ["'rank'", "key=value"]),
    "pass twice": (["--pass", "svd", "--pass", "svd:rank=4"], ["'svd'", "twice"]),
    "rank policy": (["--pass", "svd:rank=banana"], ["banana"]),
    "rank of zero": (["--pass", "svd:rank=0"], ["0"]),
    "rank that YAML reads as a date": (["--pass", "svd:rank=2001-13-45"], ["2001-13-45"]),
    "rank that is no YAML": (["--pass", "svd:rank=]"], ["rank"]),
    "round_to of zero": (["--pass", "svd:round_to=0"], ["round_to"]),
    "round_to below zero": (["--pass", "tucker2:round_to=-8"], ["round_to"]),
    "round_to in words": (["--pass", "tucker2:round_to=eight"], ["round_to"]),
    "pass and recipe": (["--pass", "svd", "--recipe", "balanced"], ["--recipe"]),
    "unknown recipe": (["--recipe", "aggressive"], ["'aggressive'", "balanced"]),
    "missing recipe": (["--recipe", "nowhere.yaml"], ["'nowhere.yaml'"]),
    "unknown target": (["--target", "flops=0.5"], ["'flops'", "macs"]),
    "target without fraction": (["--target", "macs"], ["macs"]),
    "target in words": (["--target", "macs=half"], ["half"]),
    "target of one": (["--target", "macs=1"], ["macs=1"]),
    "target of zero": (["--target", "macs=0"], ["macs=0"]),
    "target above one": (["--target", "size=1.5"], ["size=1.5"]),
    "target below zero": (["--target", "size=-0.5"], ["size=-0.5"]),
    "target that is no number": (["--target", "latency=nan"], ["latency"]),
    "target twice": (["--target", "macs=0.5", "--target", "macs=0.6"], ["'macs'", "twice"]),
    "bare sparsity": (["--target", "0.5"], ["0.5"]),
    "latency without gate": (["--target", "latency=0.9", "--gate", "off"], ["--gate"]),
    "negative drop": (["--max-drop", "-1"], ["--max-drop"]),
    "drop that is no number": (["--max-drop", "nan"], ["--max-drop"]),
    "drop in words": (["--max-drop", "little"], ["--max-drop"]),
    "signal-to-noise ratio that is no number": (["--min-snr", "nan"], ["--min-snr"]),
    "confidence of one": (["--confidence", "1"], ["--confidence"]),
    "confidence of zero": (["--confidence", "0"], ["--confidence"]),
    "confidence in per cent": (["--confidence", "95"], ["--confidence"]),
    "confidence that is no number": (["--confidence", "nan"], ["--confidence"]),
    "unknown metric": (["--metric", "top2"], ["top2", "top1"]),
    "metric that cannot be imported": (["--metric", "no_such_module:score"], ["no_such_module"]),
    "unknown provider": (["--providers", "tpu"], ["tpu", "cuda"]),
    "no provider": (["--providers", ""], ["cpu"]),
    "provider twice": (["--providers", "cpu,cpu"], ["cpu,cpu"]),
    "no threads": (["--threads", "0"], ["--threads"]),
    "empty batch": (["--batch", "0"], ["--batch"]),
    "batch in words": (["--batch", "many"], ["--batch"]),
    "negative seed": (["--seed", "-1"], ["--seed"]),
    "gate half open": (["--gate", "ajar"], ["--gate"]),
    "shape of an unknown input": (["--shape", "z:1,3,6,7"], ["'z'", "x"]),
    "shape without name": (["--shape", "1,3,6,7"], ["--shape"]),
    "shape of another rank": (["--shape", "x:1,3,6"], ["x:1,3,6"]),
    "shape against the model": (["--shape", "x:1,3,7,6"], ["x:1,3,7,6"]),
    "shape with a zero": (["--shape", "x:0,3,6,7"], ["--shape"]),
    "absurd batch": (["--batch", "999999999999"], ["'x'"]),
    "no regular expression": (["--exclude", "("], ["--exclude", "'('"]),
    "missing plan": (["--plan", "nowhere.json"], ["nowhere.json"]),
    "plan and pass": (["--plan", "nowhere.json", "--pass", "svd"], ["--plan"]),
    "unknown option": (["--prune-everything"], ["--prune-everything"]),
    "option without value": (["--seed"], ["--seed"]),
    "a third argument": (["third.onnx"], ["third.onnx"]),
}


@pytest.mark.parametrize(("options", "words"), NONSENSE.values(), ids=NONSENSE.keys())
def test_compress(
    refuse: Callable[..., Any], model: Path, options: list[str], words: list[str]
) -> None:
    gate = [] if "--gate" in options else ["--gate", "off"]
    refuse(2, "compress", model, model.with_name("out.onnx"), *gate, *options, words=words)


@pytest.mark.parametrize("name", ["top2", "no_such_module:score"])
def test_metric_of_a_dry_run(refuse: Callable[..., Any], model: Path, name: str) -> None:
    out = model.with_name("out.onnx")
    refuse(2, "compress", model, out, "--gate", "off", "--dry-run", "--metric", name, words=[name])


def test_missing_arguments(refuse: Callable[..., Any], model: Path) -> None:
    refuse(2, "compress", words=["IN"])
    refuse(2, "compress", model, words=["OUT"])


def test_unknown_command(refuse: Callable[..., Any]) -> None:
    refuse(2, "squeeze", words=["squeeze"])


def test_no_command_shows_the_help(cli: Callable[..., Any]) -> None:
    outcome = cli()
    assert outcome.code == 2
    assert "\n  compress " in outcome.out + outcome.err


def test_in_is_out(refuse: Callable[..., Any], model: Path) -> None:
    refuse(2, "compress", model, model, words=["same file"])
    refuse(2, "compress", model, model, "--force", words=["same file"])


@pytest.mark.parametrize("kind", ["symbolic", "hard", "detour"])
def test_in_is_out_by_another_name(refuse: Callable[..., Any], model: Path, kind: str) -> None:
    other = model.with_name("other.onnx")
    if kind == "symbolic":
        other.symlink_to(model)
    elif kind == "hard":
        other.hardlink_to(model)
    else:
        model.with_name("sub").mkdir()
        other = model.parent / "sub" / ".." / model.name
    refuse(2, "compress", model, other, "--force", words=["same file"])


@pytest.mark.parametrize(
    ("arguments", "stream"), [(["-", "out.onnx"], "stdin"), (["in.onnx", "-"], "stdout")]
)
def test_pipes_that_are_terminals(
    refuse: Callable[..., Any],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    stream: str,
) -> None:
    """Nobody types a model, and nobody wants to read one."""
    monkeypatch.chdir(model.parent)
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, stream, terminal)
    refuse(2, "compress", *arguments, words=["'-'"])
    assert terminal.getvalue() == ""


def test_bench_for_no_definite_time(
    refuse: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def race(*_arguments: Any, **_options: Any) -> None:
        pytest.fail("would run for ever")

    monkeypatch.setattr("onnxcompress.verify.speed.race", race)
    refuse(2, "bench", model, "--seconds", "nan", words=["--seconds"])


@pytest.mark.parametrize(
    "text",
    [
        "passes: [tucker2",
        "- tucker2",
        "passes: tucker2",
        "passes: []",
        "passes: [7]",
        "passes: [{svd: {rank: 4}, tucker2: {rank: 4}}]",
        "passes: [{svd: 4}]",
        "passes: [{svd: {1: 2}}]",
        "passes: [{svd: {rank: [4, 5]}}]",
        "passes: [{svd: {width: 4}}]",
        "passes: [svd, svd]",
        "passes: [nobody]",
        "",
        "\x01",
    ],
)
def test_recipe_that_is_none(refuse: Callable[..., Any], model: Path, text: str) -> None:
    recipe = model.with_name("recipe.yaml")
    recipe.write_text(text)
    refuse(2, "compress", model, model.with_name("out.onnx"), "--recipe", recipe)


def test_recipe_in_another_encoding(refuse: Callable[..., Any], model: Path) -> None:
    recipe = model.with_name("recipe.yaml")
    recipe.write_bytes("passes: [svd] # für alle".encode("latin-1"))
    refuse(2, "compress", model, model.with_name("out.onnx"), "--recipe", recipe)


def test_recipe_that_is_a_folder(refuse: Callable[..., Any], model: Path) -> None:
    model.with_name("recipe.yaml").mkdir()
    recipe = model.with_name("recipe.yaml")
    refuse(2, "compress", model, model.with_name("out.onnx"), "--recipe", recipe)
