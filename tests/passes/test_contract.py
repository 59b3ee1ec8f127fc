from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onnxcompress.plan.contract import Pass
from onnxcompress.plan.registry import make_pass, options, pass_class, registered
from onnxcompress.testing import Case, parametrize_with_checks

# Options that change what a pass offers, tried wherever a pass has an option of that name.
VARIANTS = (
    {"rank": "full"},
    {"rank": "evbmf"},
    {"shared": "kernels"},
    {"shared": "atoms"},
    {"shared": "edges"},
    {"shared": "kernels", "source": "both"},
    {"ranking": "weight", "round_to": 1},
)


def variants() -> Iterator[Pass[Any]]:
    for name in registered():
        yield make_pass(name)
        have = {option.name for option in options(pass_class(name))}
        yield from (make_pass(name, **values) for values in VARIANTS if have.issuperset(values))


def test_there_are_passes_to_check() -> None:
    assert registered()


@parametrize_with_checks(variants())
def test_contract(owner: Pass[Any], case: Case) -> None:
    case(owner)
