"""The pass contract as checks that anybody's pass can be put through.

    from onnxcompress.testing import check_pass, parametrize_with_checks

    @parametrize_with_checks([MyPass(), MyPass(strength=2)])
    def test_contract(owner, case):
        case(owner)

`check_pass(MyPass())` does the same without pytest. A failure that is known and accepted is
declared beside the pass, with its reason; one that no longer fails is an error:

    class MyPass(Pass[MySetting]):
        expected_failures: ClassVar[Mapping[str, str]] = {"check_commutes": "shares a codebook"}
"""

from __future__ import annotations

from onnxcompress.testing.suite import (
    Case,
    Check,
    Scope,
    all_checks,
    cases,
    check_pass,
    parametrize_with_checks,
)
from onnxcompress.testing.zoo import Entry, zoo

__all__ = [
    "Case",
    "Check",
    "Entry",
    "Scope",
    "all_checks",
    "cases",
    "check_pass",
    "parametrize_with_checks",
    "zoo",
]
