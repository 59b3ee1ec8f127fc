from __future__ import annotations

import pytest

from onnxcompress.errors import UsageError
from onnxcompress.plan.targets import KINDS, check_target, check_targets, parse_target


def test_the_kinds() -> None:
    assert KINDS == ("latency", "macs", "params", "size")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("text", "value"), [("0.6", 0.6), (".25", 0.25), ("6e-1", 0.6)])
def test_understood(kind: str, text: str, value: float) -> None:
    assert parse_target(f"{kind}={text}") == (kind, value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "KIND=FRACTION"),
        ("macs", "KIND=FRACTION"),
        ("0.5", "KIND=FRACTION"),
        ("=0.5", "''"),
        ("macs=", "''"),
        ("macs=half", "half"),
        ("macs=60%", "60%"),
        ("macs==0.5", "=0.5"),
        ("MACS=0.5", "MACS"),
        ("sparsity=0.5", "sparsity"),
        ("macs=0", "macs=0"),
        ("macs=1", "macs=1"),
        ("macs=-0.1", "-0.1"),
        ("macs=60", "60"),
        ("macs=nan", "nan"),
        ("macs=inf", "inf"),
    ],
)
def test_refused(text: str, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several() -> None:
    pairs = [("macs", 0.5), ("size", 0.25)]
    assert check_targets(pairs) == dict(pairs)
    assert check_targets(dict(pairs)) == dict(pairs)
    assert check_targets([]) == {}
    assert check_targets(parse_target(text) for text in ("params=0.3",)) == {"params": 0.3}


def test_twice() -> None:
    with pytest.raises(UsageError, match="'macs' is given twice"):
        check_targets([("macs", 0.5), ("size", 0.5), ("macs", 0.5)])


def test_a_mapping_is_checked_as_well() -> None:
    with pytest.raises(UsageError, match="'speed' is unknown"):
        check_targets({"speed": 0.5})
    with pytest.raises(UsageError, match="between 0 and 1"):
        check_targets({"macs": 1.0})
    with pytest.raises(UsageError):
        check_target("macs", float("nan"))
