"""Recipes: named or written lists of passes with their options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from onnxcompress.errors import UsageError
from onnxcompress.plan.contract import Pass
from onnxcompress.plan.registry import make_pass, parse_pass, pass_class, registered

BALANCED = "balanced"


def recipe(name: str) -> tuple[Pass[Any], ...]:
    """The passes of a recipe.

    Args:
        name: `balanced` (every registered pass that does not ask to be left out, with its
            defaults), or the path of a YAML file with a list `passes`, each entry
            `NAME[:key=value,...]` or a mapping of one name to its options.

    Raises:
        UsageError: unknown recipe, or a file that is not one.
    """
    if name == BALANCED:
        return tuple(make_pass(name) for name in registered() if pass_class(name).in_balanced)
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        raise UsageError(f"recipe '{name}' is unknown: give {BALANCED}, or a .yaml file")
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"recipe '{name}' cannot be read: {reason}") from error
    entries = values.get("passes") if isinstance(values, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"recipe '{name}' has no list 'passes'")
    return tuple(_one(entry, name) for entry in entries)


def _one(entry: object, where: str) -> Pass[Any]:
    if isinstance(entry, str):
        return parse_pass(entry)
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, values),) = entry.items()
        options = {} if values is None else values
        if isinstance(options, dict) and all(isinstance(key, str) for key in options):
            return make_pass(str(name), **options)
    raise UsageError(f"recipe '{where}': entry {entry!r} is neither text nor one pass with options")
