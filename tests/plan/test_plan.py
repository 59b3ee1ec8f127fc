"""A plan written and read back is the same plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import UsageError
from onnxcompress.plan.contract import Candidate, Refusal, candidate_from_dict
from onnxcompress.plan.options import collect
from onnxcompress.plan.plan import Plan, described, read_plan
from onnxcompress.plan.registry import parse_pass


@pytest.fixture
def plan(facts: Facts) -> Plan:
    passes = [parse_pass("tucker2:rank=2x3"), parse_pass("svd:rank=2")]
    found = collect(facts, passes)
    chosen = tuple(offers[0] for offers in found.sites)
    assert {c.site.node: c.site.pass_name for c in chosen} == {
        "one": "svd",
        "two": "tucker2",
        "three": "svd",
    }
    return Plan(
        model_digest="0123abcd",
        passes=described(passes),
        chosen=chosen,
        refusals=(*found.refusals, Refusal("svd", "elsewhere", 'because of "quotes" — and more')),
        targets={"macs": 0.5},
        gate=False,
        notes=("found by hand",),
    )


def test_round_trip(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    read, passes = read_plan(path)
    assert read.to_dict() == plan.to_dict()
    assert passes == [parse_pass("tucker2:rank=2x3"), parse_pass("svd:rank=2")]
    # Whether a pass recommended a candidate matters to planning only.
    for one, other in zip(read.chosen, plan.chosen, strict=True):
        assert (one.site, one.setting, one.touches) == (other.site, other.setting, other.touches)
        assert (one.before, one.after, one.damage) == (other.before, other.after, other.damage)


def test_plain_values(plan: Plan) -> None:
    values = plan.to_dict()
    assert list(values) == [
        "version", "model_digest", "passes", "targets", "gate", "then", "stage", "first", "chosen",
        "refusals", "notes",
    ]  # fmt: skip
    assert values["version"] == 1
    assert json.loads(plan.to_json()) == values
    assert values["passes"][0] == {
        "name": "tucker2",
        "options": {"rank": "2x3", "round_to": 8, "rungs": 8, "metric": "auto"},
    }
    two = next(c for c in values["chosen"] if c["node"] == "two")
    assert two["setting"] == {
        "rank_out": 2,
        "rank_in": 3,
        "triple": False,
        "metric": "weights",
    }
    # 5 x 5 positions; 4 -> 3 -> 2 -> 4 channels around a 3 x 3 core, against 4 -> 4.
    assert two["before"] == {"macs": 25 * 16 * 9, "params": 144, "weight_bytes": 576}
    core = 4 * 3 + 2 * 3 * 9 + 4 * 2
    assert two["after"] == {"macs": 25 * core, "params": core, "weight_bytes": 4 * core}


@pytest.mark.parametrize("key", ["pass", "node", "setting", "touches", "before", "after", "damage"])
def test_every_field_of_a_candidate_is_needed(plan: Plan, key: str) -> None:
    values: dict[str, Any] = plan.chosen[0].to_dict()
    owner = parse_pass(values["pass"])
    assert isinstance(candidate_from_dict(values, owner), Candidate)
    del values[key]
    with pytest.raises(UsageError):
        candidate_from_dict(values, owner)


@pytest.mark.parametrize("setting", [{}, {"rank": 1, "extra": 2}, {"rank_out": 1}, None, 3])
def test_settings_that_do_not_fit(setting: object) -> None:
    with pytest.raises(UsageError, match="does not fit pass 'svd'"):
        parse_pass("svd").load_setting(setting)  # type: ignore[arg-type]


def test_values_are_plain(plan: Plan) -> None:
    """No NumPy number survives in the values, so any JSON writer copes."""

    def check(value: object) -> None:
        assert not isinstance(value, np.generic)
        if isinstance(value, dict):
            for entry in value.values():
                check(entry)
        elif isinstance(value, list):
            for entry in value:
                check(entry)

    check(plan.to_dict())
