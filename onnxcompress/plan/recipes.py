"""Recipes: named or written lists of passes with their options."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from onnxcompress.errors import UsageError
from onnxcompress.plan.contract import Pass
from onnxcompress.plan.registry import make_pass, parse_pass, pass_class, registered

BALANCED = "balanced"
_FOLDER = "recipes"


def named() -> dict[str, Traversable]:
    """The recipes that come along, by name: YAML files to read and to copy."""
    found = {
        entry.name.removesuffix(".yaml"): entry
        for entry in files("onnxcompress").joinpath(_FOLDER).iterdir()
        if entry.name.endswith(".yaml")
    }
    return dict(sorted(found.items()))


def recipe(name: str, *, targeted: bool = False) -> tuple[Pass[Any], ...]:
    """The passes of a recipe.

    Args:
        name: one of `named()`, or the path of a YAML file with a list `passes`, each entry
            `NAME[:key=value,...]` or a mapping of one name to its options; with `others: true`
            every other installed pass that asks to be in `balanced` comes behind them. A list
            `with_target` follows where something is to be saved that they alone may not save.
        targeted: whether the job has a target.

    Raises:
        UsageError: unknown recipe, or a file that is not one.
    """
    known = named()
    path: Traversable = Path(name)
    if name in known:
        path = known[name]
    elif not name.endswith((".yaml", ".yml")):
        raise UsageError(f"recipe '{name}' is unknown: give {', '.join(known)}, or a .yaml file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"recipe '{name}' cannot be read: {reason}") from error
    entries = values.get("passes") if isinstance(values, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"recipe '{name}' has no list 'passes'")
    unknown = sorted(map(str, set(values) - {"passes", "with_target", "others"}))
    if unknown:
        raise UsageError(
            f"recipe '{name}': '{unknown[0]}' is none of passes, with_target and others"
        )
    more = values.get("with_target", [])
    if type(values.get("others", False)) is not bool or not isinstance(more, list):
        raise UsageError(f"recipe '{name}': 'others' is true or false, 'with_target' a list")
    passes = tuple(_one(entry, name) for entry in [*entries, *(more if targeted else ())])
    return (*passes, *_others(passes)) if values.get("others") else passes


def _others(passes: tuple[Pass[Any], ...]) -> Iterator[Pass[Any]]:
    taken = {one.name for one in passes}
    for name in registered():
        if name not in taken and pass_class(name).in_balanced:
            yield make_pass(name)


def _one(entry: object, where: str) -> Pass[Any]:
    if isinstance(entry, str):
        return parse_pass(entry)
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, values),) = entry.items()
        options = {} if values is None else values
        if isinstance(options, dict) and all(isinstance(key, str) for key in options):
            return make_pass(str(name), **options)
    raise UsageError(f"recipe '{where}': entry {entry!r} is neither text nor one pass with options")
