"""Passes by name: discovered through entry points, ours and third parties' alike."""

from __future__ import annotations

import dataclasses
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import yaml

from onnxcompress.errors import PassError, UsageError
from onnxcompress.plan.contract import Pass

GROUP = "onnxcompress.passes"


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a pass, as `onnxcompress passes` lists it."""

    name: str
    default: Any
    help: str


def registered() -> dict[str, EntryPoint]:
    """Entry points of every installed pass, by name, sorted."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    return dict(sorted(found.items()))


def pass_class(name: str) -> type[Pass[Any]]:
    """The class registered under `name`.

    Raises:
        UsageError: no such pass is installed.
        PassError: it cannot be imported, or is not a pass.
    """
    entries = registered()
    if name not in entries:
        raise UsageError(f"there is no pass '{name}': installed are {', '.join(entries) or 'none'}")
    try:
        loaded = entries[name].load()
    except Exception as error:
        raise PassError(
            f"pass '{name}' ({entries[name].value}) cannot be imported: {error}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)) or loaded.name != name:
        raise PassError(f"entry point '{name}' ({entries[name].value}) is not a Pass of that name")
    return loaded


def options(cls: type[Pass[Any]]) -> tuple[Option, ...]:
    """The options of a pass class (its dataclass fields)."""
    if not dataclasses.is_dataclass(cls):
        return ()
    return tuple(
        Option(f.name, f.default, str(f.metadata.get("help", ""))) for f in dataclasses.fields(cls)
    )


def make_pass(name: str, **values: Any) -> Pass[Any]:
    """An instance of the pass `name` with the given options.

    Raises:
        UsageError: an option is unknown or its value is not understood.
    """
    cls = pass_class(name)
    known = {option.name for option in options(cls)}
    unknown = [key for key in values if key not in known]
    if unknown:
        have = ", ".join(sorted(known)) or "none"
        raise UsageError(f"pass '{name}' has no option '{unknown[0]}': it has {have}")
    try:
        return cls(**values)
    except TypeError as error:
        raise UsageError(f"options of pass '{name}': {error}") from error


def parse_pass(text: str) -> Pass[Any]:
    """Parse `NAME[:key=value,...]`; values are read as YAML scalars.

    Raises:
        UsageError: the text is not of that form, or names an unknown pass or option.
    """
    name, _, rest = text.partition(":")
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--pass '{text}': '{part}' is not of the form key=value")
        try:
            values[key.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise UsageError(f"--pass '{text}': value of '{key}' is not understood") from error
    return make_pass(name.strip(), **values)
