"""The suite: every check over every model of the zoo, for any pass, with or without pytest."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from onnxcompress.plan.contract import Pass
from onnxcompress.testing import checks_declaration as declaration
from onnxcompress.testing import checks_proposing as proposing
from onnxcompress.testing import checks_replaying as replaying
from onnxcompress.testing import checks_result as result
from onnxcompress.testing import checks_rewriting as rewriting
from onnxcompress.testing.zoo import Entry, zoo


class Scope(enum.Enum):
    """What one run of a check looks at."""

    ONCE = "the pass itself, or the whole zoo at once"
    EVERY = "every model of the zoo"
    LONE = "networks of a single layer"
    DYNAMIC = "networks with a symbolic batch dimension"


@dataclass(frozen=True)
class Check:
    """One invariant of the pass contract.

    Attributes:
        function: called with the pass, and with a model of the zoo unless the scope is ONCE;
            raises AssertionError where the invariant does not hold.
        scope: which models it is for.
    """

    function: Callable[..., None]
    scope: Scope = Scope.EVERY

    @property
    def id(self) -> str:
        """The name of the check, as in `expected_failures`."""
        return self.function.__name__

    @property
    def law(self) -> str:
        """The invariant in one sentence."""
        return (self.function.__doc__ or "").strip().splitlines()[0]

    def entries(self) -> tuple[Entry | None, ...]:
        """The models of the zoo that the check is for; None stands for no model in particular."""
        match self.scope:
            case Scope.ONCE:
                return (None,)
            case Scope.LONE:
                return tuple(entry for entry in zoo() if entry.lone)
            case Scope.DYNAMIC:
                return tuple(entry for entry in zoo() if entry.dynamic_batch)
            case Scope.EVERY:
                return zoo()


@dataclass(frozen=True)
class Case:
    """A check on one model of the zoo; calling it runs it.

    Attributes:
        check: the invariant.
        entry: the model, or None.
    """

    check: Check
    entry: Entry | None

    @property
    def id(self) -> str:
        """`<model>-<check>`, or the check alone."""
        return f"{self.entry.name}-{self.check.id}" if self.entry else self.check.id

    def __call__(self, owner: Pass[Any]) -> None:
        """Run the check on a pass.

        Raises:
            AssertionError: the invariant does not hold, or something else went wrong on the way;
                names the check, the model and the pass.
        """
        try:
            self.check.function(owner, *([self.entry] if self.entry else []))
        except Exception as error:
            finding = str(error) if isinstance(error, AssertionError) else repr(error)
            raise AssertionError(f"{pass_id(owner)}: {self.id}: {finding}") from error


def all_checks() -> tuple[Check, ...]:
    """Every check there is."""
    return (
        Check(declaration.check_declared, Scope.ONCE),
        Check(declaration.check_default_constructible_and_picklable, Scope.ONCE),
        Check(declaration.check_settings_are_guarded, Scope.ONCE),
        Check(proposing.check_nothing_is_passed_over, Scope.ONCE),
        Check(proposing.check_applies_somewhere, Scope.ONCE),
        Check(replaying.check_hash_seed, Scope.ONCE),
        Check(proposing.check_needs_are_complete),
        Check(proposing.check_proposing_does_not_mutate),
        Check(proposing.check_refusals_say_why),
        Check(proposing.check_excluded_nodes_are_refused),
        Check(proposing.check_candidates_are_well_formed),
        Check(proposing.check_damage_is_monotone),
        Check(proposing.check_errors_are_typed),
        Check(proposing.check_nonfinite_weights_are_refused, Scope.LONE),
        Check(rewriting.check_deterministic),
        Check(rewriting.check_rewrite_is_local),
        Check(rewriting.check_names_are_fresh, Scope.LONE),
        Check(rewriting.check_reaches_a_fixpoint),
        Check(rewriting.check_commutes),
        Check(replaying.check_replay),
        Check(replaying.check_rollback),
        Check(result.check_result_is_valid),
        Check(result.check_loosest_setting_is_exact),
        Check(result.check_damage_is_honest, Scope.LONE),
        Check(result.check_cost_is_counted),
        Check(result.check_dtypes_are_kept),
        Check(result.check_dynamic_batch, Scope.DYNAMIC),
        Check(result.check_rank_deficient_weights, Scope.LONE),
    )


def cases() -> Iterator[Case]:
    """Every check on every model it is for, model by model."""
    pairs = [Case(check, entry) for check in all_checks() for entry in check.entries()]
    order = {None: -1} | {entry: at for at, entry in enumerate(zoo())}
    # What a pass offers on one model is remembered, for as long as the model stays the same.
    yield from sorted(pairs, key=lambda case: order[case.entry])


def pass_id(owner: Pass[Any]) -> str:
    """A pass as test ids call it: its name and the options that are not the defaults."""
    if not is_dataclass(owner):
        return owner.name
    changed = [
        f"{field.name}={getattr(owner, field.name)}"
        for field in fields(owner)
        if getattr(owner, field.name) != field.default
    ]
    return ":".join([owner.name, *filter(None, [",".join(changed)])])


def expected_failures(owner: Pass[Any]) -> Mapping[str, str]:
    """Reasons for the failures that a pass owns up to, by id of a check or of a case.

    They stand beside the pass, in its attribute `expected_failures`, and are strict: what no
    longer fails has to go.

    Raises:
        AssertionError: there is no such check, or the reason is empty.
    """
    declared: Mapping[str, str] = getattr(owner, "expected_failures", {})
    known = {check.id for check in all_checks()} | {case.id for case in cases()}
    for name, reason in declared.items():
        if name not in known:
            raise AssertionError(f"{owner.name}: expected_failures names '{name}': no such check")
        if not reason.strip():
            raise AssertionError(f"{owner.name}: expected_failures gives no reason for '{name}'")
    return declared


def check_pass(owner: Pass[Any]) -> None:
    """Run every check on a pass; needs no pytest.

    Raises:
        AssertionError: names the first check and model that fail, or the expected failure that
            did not.
    """
    allowed = expected_failures(owner)
    failed: set[str] = set()
    for case in cases():
        names = {case.id, case.check.id} & set(allowed)
        try:
            case(owner)
        except AssertionError:
            if not names:
                raise
            failed |= names
    for name in allowed:
        if name not in failed:
            raise AssertionError(f"{pass_id(owner)}: {name} was expected to fail, and holds")


def parametrize_with_checks(passes: Iterable[Pass[Any]]) -> Callable[[Any], Any]:
    """A pytest decorator: one test for every pass, model and check.

    The test takes `owner` and `case`, and calls `case(owner)`. Ids read
    `tucker2-residual-check_result_is_valid`. A check that is expected to fail as a whole is one
    test, over all models.

    Args:
        passes: the passes, with whatever options.
    """
    import pytest

    parameters = []
    for owner in passes:
        allowed = expected_failures(owner)
        whole = [check for check in all_checks() if check.id in allowed]
        runs: list[Case | _Whole] = [_Whole(check) for check in whole]
        runs += [case for case in cases() if case.check not in whole]
        for run in runs:
            known = allowed.get(run.id)
            marks = [pytest.mark.xfail(reason=known, strict=True)] if known else []
            name = f"{pass_id(owner)}-{run.id}"
            parameters.append(pytest.param(owner, run, id=name, marks=marks))
    return pytest.mark.parametrize(("owner", "case"), parameters)


@dataclass(frozen=True)
class _Whole:
    """A check on all the models it is for, as one test: fails if it fails on any."""

    check: Check

    @property
    def id(self) -> str:
        return self.check.id

    def __call__(self, owner: Pass[Any]) -> None:
        for entry in self.check.entries():
            Case(self.check, entry)(owner)
