"""Options and settings of `prune`: what is understood, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from onnxcompress.errors import UsageError
from onnxcompress.plan.registry import parse_pass
from onnxcompress_passes.prune import Prune
from onnxcompress_passes.prune_setting import KeptChannels


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"criterion": "taste"}, ["criterion='taste'", "weight", "apoz"]),
        ({"norm": "l3"}, ["norm='l3'", "l2", "min"]),
        ({"normalise": "max"}, ["normalise='max'", "minmax", "none"]),
        ({"combine": "min"}, ["combine='min'", "mean", "sum"]),
        ({"scope": "world"}, ["scope='world'", "global"]),
        ({"channels": -0.1}, ["channels=-0.1", "between 0 and 1"]),
        ({"channels": 1.5}, ["channels=1.5", "between 0 and 1"]),
        ({"channels": float("nan")}, ["channels=nan", "between 0 and 1"]),
        ({"channels": "half"}, ["channels='half'", "not a number"]),
        ({"channels": True}, ["channels=True", "not a number"]),
        ({"round_to": -1}, ["round_to=-1", ">= 0"]),
        ({"round_to": 2.0}, ["round_to=2.0", "whole"]),
        ({"per_step": -3}, ["per_step=-3", ">= 0"]),
        ({"per_step": True}, ["per_step=True", "whole"]),
        ({"branches": 1}, ["branches=1", "true or false"]),
        ({"seed": -1}, ["seed=-1"]),
        ({"seed": 0.5}, ["seed=0.5"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_options_that_make_no_sense(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        Prune(**options)
    message = str(caught.value)
    assert "\n" not in message
    for word in ("prune", *words):
        assert word in message


def test_options_as_text() -> None:
    text = (
        "prune:criterion=apoz,norm=l1,normalise=minmax,combine=max,channels=0.25,scope=global,"
        "round_to=4,per_step=2,branches=false,seed=7"
    )
    expected = Prune(
        criterion="apoz",
        norm="l1",
        normalise="minmax",
        combine="max",
        channels=0.25,
        scope="global",
        round_to=4,
        per_step=2,
        branches=False,
        seed=7,
    )
    assert parse_pass(text) == expected


@pytest.mark.parametrize(
    ("full", "round_to", "expected"),
    [
        (64, 16, [64, 48, 32, 16]),
        (64, 24, [64, 48, 24]),
        (6, 1, [6, 5, 4, 3, 2, 1]),
        (6, 4, [6, 4]),
        (6, 0, [6, 5, 4, 3, 2, 1]),
    ],
)
def test_widths_as_asked(
    pruning: Any, nets: Any, full: int, round_to: int, expected: list[int]
) -> None:
    facts = nets.facts(pruning.chain(one=full))
    assert pruning.widths(pruning.offers(Prune(round_to=round_to), facts)["one"]) == expected


@pytest.mark.parametrize("full", [12, 16, 17, 40, 64, 80, 512])
def test_widths_on_offer(pruning: Any, nets: Any, full: int) -> None:
    """All multiples of some power of two: a dozen or so, and never more than two dozen."""
    facts = nets.facts(pruning.chain(one=full, two=4))
    found = pruning.widths(pruning.offers(Prune(), facts)["one"])
    assert found[0] == full
    step = found[-1]
    assert step.bit_count() == 1
    assert found[1:] == [w for w in range(full - 1, 0, -1) if w % step == 0]
    assert 8 <= len(found) <= 24


SETTINGS = [{"kept": [0, 2, 3]}, {"kept": [3, 0, 2, 2], "mean": []}]


@pytest.mark.parametrize("values", SETTINGS)
def test_settings_are_read(values: dict[str, Any]) -> None:
    assert Prune().load_setting(values) == KeptChannels((0, 2, 3))
    assert Prune().load_setting({"kept": [], "mean": [0.5, -1]}) == KeptChannels((), (0.5, -1.0))


@pytest.mark.parametrize(
    "values",
    [
        {},
        [],
        None,
        {"kept": []},
        {"kept": [], "mean": []},
        {"kept": [0], "mean": [1.0]},
        {"kept": "012"},
        {"kept": [0.0]},
        {"kept": [True]},
        {"kept": [0], "width": 3},
        {"kept": None},
        {"kept": [], "mean": ["x"]},
        {"kept": [], "mean": [float("nan")]},
        {"kept": [], "mean": [float("inf")]},
        {"mean": [1.0]},
    ],
)
def test_settings_that_make_no_sense(values: Any) -> None:
    with pytest.raises(UsageError, match="prune") as caught:
        Prune().load_setting(values)
    assert "\n" not in str(caught.value)
