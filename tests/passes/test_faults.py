from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import onnx
import pytest

from onnxcompress.plan.contract import Pass
from onnxcompress.rewrite import manager
from onnxcompress.testing import Case, all_checks, check_pass, parametrize_with_checks, suite, zoo
from onnxcompress_passes.tucker2 import Tucker2


def load(name: str) -> ModuleType:
    """A module beside this one; tests are no package, so it cannot be imported by name."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


MODULES = declaring, proposing, _, geometry, _ = [
    load(f"faulty_{name}")
    for name in ("declaring", "proposing", "promising", "geometry", "rewriting")
]
FAULTS = [
    (check, owner, match)
    for module in MODULES
    for check, faults in module.FAULTS.items()
    for owner, match in faults
]
CHECKS = {check.id: check for check in all_checks()}


def first_failure(check: str, owner: Pass[Any]) -> tuple[Case, str] | None:
    for entry in CHECKS[check].entries():
        case = Case(CHECKS[check], entry)
        try:
            case(owner)
        except AssertionError as error:
            return case, str(error)
    return None


@pytest.mark.parametrize(
    ("check", "owner", "match"),
    FAULTS,
    ids=[f"{check}-{suite.pass_id(owner)}-{type(owner).__name__}" for check, owner, _ in FAULTS],
)
def test_the_check_catches_the_fault(check: str, owner: Pass[Any], match: str) -> None:
    found = first_failure(check, owner)
    assert found is not None, "the fault went unnoticed: is it live?"
    case, message = found
    with pytest.raises(AssertionError, match=match):
        raise AssertionError(message)
    # What the check objects to is the fault, and not the pass that the fault was planted in.
    case(Tucker2(owner.rank, owner.round_to))


def test_every_check_has_a_fault() -> None:
    assert {check for check, _, _ in FAULTS} == set(CHECKS)


@pytest.mark.parametrize("faulty", geometry.BLIND, ids=lambda faulty: faulty.__name__)
def test_the_fault_shows_only_where_the_geometry_can_tell(faulty: type[Tucker2]) -> None:
    (entry,) = (e for e in zoo() if e.name == geometry.BLIND[faulty])
    for check in ("check_result_is_valid", "check_loosest_setting_is_exact"):
        Case(CHECKS[check], entry)(faulty())


def stale_value_info(model: onnx.ModelProto) -> None:
    model.graph.value_info[0].type.tensor_type.shape.dim[0].dim_param = "stale"


def unused_constant(model: onnx.ModelProto) -> None:
    model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
    model.graph.initializer[-1].name = "unused"


def dead_node(model: onnx.ModelProto) -> None:
    node = onnx.helper.make_node("Relu", [model.graph.input[0].name], ["dead"], "dead")
    model.graph.node.append(node)


def other_producer(model: onnx.ModelProto) -> None:
    model.producer_name = "somebody else"


@pytest.mark.parametrize(
    ("tamper", "match"),
    [
        (stale_value_info, "value_info is stale"),
        (unused_constant, "nobody reads the constants"),
        (dead_node, "nobody reads the nodes"),
        (other_producer, "names, versions or doc strings"),
    ],
)
def test_the_check_catches_what_only_the_engine_can_do(
    tamper: Callable[[onnx.ModelProto], None], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = manager.with_value_info

    def tampered(model: onnx.ModelProto) -> onnx.ModelProto:
        tamper(sound(model))
        return model

    case = Case(CHECKS["check_result_is_valid"], zoo()[0])
    case(Tucker2())
    monkeypatch.setattr(manager, "with_value_info", tampered)
    with pytest.raises(AssertionError, match=match):
        case(Tucker2())


@dataclass(frozen=True)
class Owning(Tucker2):
    """Owns up to a failure."""

    expected_failures: ClassVar[dict[str, str]] = {"check_declared": "it is not so bad"}


@dataclass(frozen=True)
class OwningFaulty(Owning):
    """Owns up to a failure that it has."""

    name: ClassVar[str] = "Not Snake"


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(suite, "all_checks", lambda: tuple(CHECKS[name] for name in names))


def test_expected_failures_are_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "check_declared", "check_settings_are_guarded")
    check_pass(Tucker2())
    check_pass(OwningFaulty())
    with pytest.raises(AssertionError, match="check_declared was expected to fail, and holds"):
        check_pass(Owning())
    with pytest.raises(AssertionError, match=r"tucker2: check_settings_are_guarded: .*KeyError"):
        check_pass(declaring.Abrupt())


@pytest.mark.parametrize(
    ("declared", "match"),
    [({"check_nothing": "why"}, "no such check"), ({"check_declared": " "}, "no reason")],
)
def test_expected_failures_have_to_make_sense(
    declared: dict[str, str], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "check_declared")
    monkeypatch.setattr(Owning, "expected_failures", declared)
    with pytest.raises(AssertionError, match=match):
        check_pass(Owning())


def test_the_decorator_names_and_marks_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "check_declared", "check_commutes")
    declared = {"check_declared": "why", "residual-check_commutes": "why not"}
    monkeypatch.setattr(Owning, "expected_failures", declared)
    mark = parametrize_with_checks([Owning(rank="full")]).mark
    marks = {parameter.id: [m.name for m in parameter.marks] for parameter in mark.args[1]}
    assert marks["tucker2:rank=full-check_declared"] == ["xfail"]
    assert marks["tucker2:rank=full-residual-check_commutes"] == ["xfail"]
    assert marks["tucker2:rank=full-plain-check_commutes"] == []
    assert len(marks) == 1 + len(zoo())


def test_a_check_expected_to_fail_is_one_test_over_all_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only(monkeypatch, "check_excluded_nodes_are_refused")
    declared = {"check_excluded_nodes_are_refused": "why"}
    monkeypatch.setattr(Owning, "expected_failures", declared)
    (parameter,) = parametrize_with_checks([Owning()]).mark.args[1]
    _, case = parameter.values
    case(Tucker2())
    with pytest.raises(AssertionError, match="are excluded"):
        case(proposing.Overbearing())


def test_the_suite_does_without_pytest() -> None:
    code = (
        "import sys, onnxcompress.testing as t; t.all_checks(); sys.exit('pytest' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_two_networks_of_one_name_cannot_be_told_apart() -> None:
    names = [entry.name for entry in zoo()]
    assert len(names) == len(set(names))


def test_models_of_the_zoo_are_the_same_every_time() -> None:
    for entry in zoo():
        again = replace(entry)
        assert again.canonical() == entry.canonical()
        assert again.raw() == entry.raw()
