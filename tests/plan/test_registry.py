from __future__ import annotations

import math
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from onnxcompress.errors import PassError, UsageError
from onnxcompress.plan import recipes, registry
from onnxcompress.plan.recipes import named, recipe
from onnxcompress.plan.registry import make_pass, options, parse_pass, pass_class, registered


def test_the_built_in_passes_are_found_by_their_entry_points() -> None:
    found = registered()
    assert list(found) == sorted(found)
    assert {"svd", "tucker2"} <= set(found)
    for name in ("svd", "tucker2"):
        assert pass_class(name).name == name
        assert pass_class(name).__module__.startswith("onnxcompress_passes.")


def test_options_with_defaults_and_help() -> None:
    found = {option.name: option for option in options(pass_class("tucker2"))}
    assert found["rank"].default == "auto"
    assert found["round_to"].default == 8
    assert all(option.help for option in found.values())


@pytest.mark.parametrize(
    ("text", "rank", "round_to"),
    [
        ("svd", "auto", 8),
        ("svd:", "auto", 8),
        ("svd:rank=full", "full", 8),
        ("svd:rank=16", "16", 8),
        ("svd:rank=energy:0.9", "energy:0.9", 8),
        ("svd:rank=16,round_to=4", "16", 4),
        (" svd : round_to = 4 ,rank=evbmf", "evbmf", 4),
    ],
)
def test_passes_as_text(text: str, rank: str, round_to: int) -> None:
    made = parse_pass(text)
    assert made == pass_class("svd")(rank=rank, round_to=round_to)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nobody", ["'nobody'", "installed are", "svd"]),
        ("svd:rank", ["'rank'", "key=value"]),
        ("svd:=4", ["'=4'"]),
        ("svd:width=4", ["'width'", "rank, round_to"]),
        ("svd:rank=banana", ["banana"]),
        ("svd:rank=[", ["'rank'"]),
        ("svd:rank=2001-13-45", ["2001-13-45"]),
    ],
)
def test_texts_that_are_refused(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pass(text)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0, -8, "eight", 2.5, None])
@pytest.mark.parametrize("name", ["svd", "tucker2"])
def test_widths_that_are_none(name: str, value: object) -> None:
    with pytest.raises(UsageError, match="round_to"):
        make_pass(name, round_to=value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_module_at_all:Pass", "cannot be imported"),
        ("math:no_such_name", "cannot be imported"),
        ("math:pi", "not a Pass"),
        ("pathlib:Path", "not a Pass"),
        ("onnxcompress_passes.svd:Svd", "not a Pass of that name"),
    ],
)
def test_third_parties_that_are_broken(
    monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    entry = EntryPoint("broken", value, registry.GROUP)
    monkeypatch.setattr(registry, "registered", lambda: {"broken": entry})
    with pytest.raises(PassError, match=reason) as caught:
        make_pass("broken")
    assert value in str(caught.value)
    assert math.pi  # what "math:pi" names exists


def test_nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "registered", dict)
    with pytest.raises(UsageError, match="installed are none"):
        make_pass("svd")


def test_balanced() -> None:
    """Its own passes in their order, then every other that needs no asking."""
    names = [p.name for p in recipe("balanced")]
    assert names[:3] == ["exact", "tucker2", "svd"]
    rest = [n for n in registered() if pass_class(n).in_balanced and n not in names[:3]]
    assert names[3:] == rest
    assert [p.name for p in recipe("balanced", targeted=True)] == [*names[:3], "lnr", *rest]
    # Two passes that remove channels of the same groups are for those who ask for both.
    assert "prune" not in names


def test_others_come_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {**registered(), "math": EntryPoint("math", "math:pi", registry.GROUP)}
    genuine = registry.pass_class

    class Third(pass_class("svd")):  # type: ignore[misc]
        name = "math"

    monkeypatch.setattr(recipes, "registered", lambda: entries)
    for module in (recipes, registry):
        find = lambda n: Third if n == "math" else genuine(n)  # noqa: E731
        monkeypatch.setattr(module, "pass_class", find)
    assert [p.name for p in recipe("balanced")][3:] == ["math"]
    assert "math" not in [p.name for p in recipe("fast")]


@pytest.mark.parametrize("name", named())
def test_recipes_that_come_along(name: str, tmp_path: Path) -> None:
    """A copy of the file is the same recipe."""
    copy = tmp_path / "copy.yaml"
    copy.write_text(named()[name].read_text())
    assert recipe(str(copy)) == recipe(name)
    assert recipe(name)[0].name == "exact"


def test_every_name_is_offered() -> None:
    assert list(named()) == ["balanced", "fast", "smallest"]
    with pytest.raises(UsageError, match="balanced, fast, smallest"):
        recipe("aggressive")


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_written_recipes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    path.write_text("passes:\n  - tucker2:rank=energy:0.9\n  - svd: {rank: 16, round_to: 4}\n")
    assert recipe(str(path)) == (
        pass_class("tucker2")(rank="energy:0.9"),
        pass_class("svd")(rank="16", round_to=4),
    )
    path.write_text("passes:\n  - svd:\n")
    assert recipe(str(path)) == (pass_class("svd")(),)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "passes:", "passes: svd", "passes: {svd: 1}", "passes: [[svd]]",
        "passes: [{svd: 1}]", "{passes: [svd], other: true}", "{passes: [svd], others: 1}",
        "{passes: [svd], with_target: svd}",
        "passes: [{a: {}, b: {}}]", "passes: [", "passes: [{svd: {1: 2}}]",
    ],
)  # fmt: skip
def test_files_that_are_no_recipes(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        recipe(str(path))
    assert "mine.yaml" in str(caught.value) or "'svd'" in str(caught.value)
    assert "\n" not in str(caught.value)
