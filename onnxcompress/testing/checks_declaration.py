"""What a pass says about itself before it has seen a model."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from typing import Any

from onnxcompress.analyse.facts import Need
from onnxcompress.errors import OnnxCompressError
from onnxcompress.plan.contract import Pass
from onnxcompress.plan.registry import options
from onnxcompress.testing.checks_measuring import demand

_SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def check_declared(owner: Pass[Any]) -> None:
    """A snake_case name, a docstring, declared needs, and options with defaults and help."""
    cls = type(owner)
    name = getattr(cls, "name", "")
    demand(_SNAKE_CASE.fullmatch(str(name)), f"name {name!r} is not snake_case")
    text = cls.__dict__.get("__doc__") or ""
    # A dataclass without a docstring is given its signature for one.
    demand(
        text and not text.startswith(f"{cls.__name__}("), "the class has no docstring of its own"
    )
    _demand_frozen(cls, "the pass")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        demand(
            field.default is not dataclasses.MISSING,
            f"option '{field.name}' has no default",
        )
        # Options are written into the plan file and read back.
        demand(
            field.default is None or isinstance(field.default, (str, bool, int, float)),
            f"option '{field.name}' defaults to {field.default!r}, which is not a plain value",
        )
        demand(str(field.metadata.get("help", "")).strip(), f"option '{field.name}' has no help")
    needs = getattr(cls, "needs", None)
    demand(
        isinstance(needs, frozenset) and all(isinstance(need, Need) for need in needs),
        f"needs is {needs!r}, not a frozenset of Need",
    )
    setting_type = getattr(cls, "setting_type", None)
    demand(isinstance(setting_type, type), "setting_type is not declared")
    _demand_frozen(setting_type, "setting_type")


def check_default_constructible_and_picklable(owner: Pass[Any]) -> None:
    """The class needs no arguments; options, pickle and copy give the same pass again."""
    cls = type(owner)
    try:
        cls()
    except Exception as error:
        raise AssertionError(f"{cls.__name__}() fails: {error!r}") from error
    values = {option.name: getattr(owner, option.name) for option in options(cls)}
    try:
        again = {
            "its options": cls(**values),
            "pickle": pickle.loads(pickle.dumps(owner)),  # noqa: S301  (our own bytes)
            "copy": copy.deepcopy(owner),
        }
    except Exception as error:
        raise AssertionError(f"{owner} cannot be made again: {error!r}") from error
    for how, other in again.items():
        same = type(other) is cls and other == owner and vars(other) == vars(owner)
        demand(same, f"{owner} made again from {how} is {other}")


def check_settings_are_guarded(owner: Pass[Any]) -> None:
    """Values from a plan file that do not fit are refused with an error of ours."""
    try:
        setting = owner.load_setting({"no such field": 0})
    except OnnxCompressError:
        return
    except Exception as error:
        raise AssertionError(f"load_setting raised {error!r}, not a UsageError") from error
    raise AssertionError(f"load_setting took values that make no sense: {setting}")


def _demand_frozen(cls: Any, what: str) -> None:
    """Fail unless `cls` itself, and not only a base of it, is a frozen dataclass."""
    parameters = vars(cls).get("__dataclass_params__")
    demand(parameters is not None and parameters.frozen, f"{what} is not a frozen dataclass")
