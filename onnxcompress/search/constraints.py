"""Constraints on combinations of ratios, as text that a person can write.

`c1`, `c2`, ... are the ratios of the superblocks from the input on; superblocks with a name of the
user's go by that name as well. `c1 >= c2 and c3 + c4 <= 1.5` is a constraint.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import CodeType

import yaml

from onnxcompress.errors import UsageError

NONE, FALLING = "none", "non-increasing"
_POSITION = re.compile(r"c\d+")
_ALLOWED = (
    ast.Expression,
    ast.BoolOp,
    ast.And,
    ast.Or,
    ast.UnaryOp,
    ast.Not,
    ast.USub,
    ast.BinOp,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.Div,
    ast.Compare,
    ast.Lt,
    ast.LtE,
    ast.Gt,
    ast.GtE,
    ast.Eq,
    ast.NotEq,
    ast.Name,
    ast.Load,
    ast.Constant,
)


@dataclass(frozen=True)
class Constraint:
    """What a combination of ratios must satisfy.

    Attributes:
        text: as it was written.
        falling: whether ratios must not rise from the input to the output.
        conditions: compiled expressions over the names of the superblocks, all of which must hold.
        names: what ratios are called in them, superblock by superblock.
    """

    text: str
    falling: bool
    conditions: tuple[CodeType, ...]
    names: tuple[tuple[str, ...], ...]

    def allows(self, ratios: Sequence[float]) -> bool:
        """Whether these ratios, one per superblock, satisfy it.

        Raises:
            UsageError: it cannot be worked out (a division by zero).
        """
        if self.falling and any(after > before for before, after in pairwise(ratios)):
            return False
        values = {
            name: ratio for own, ratio in zip(self.names, ratios, strict=True) for name in own
        }
        try:
            # Nothing but arithmetic and comparisons gets this far.
            return all(eval(one, {"__builtins__": {}}, values) for one in self.conditions)  # noqa: S307
        except ArithmeticError as error:
            raise UsageError(f"--constraint '{self.text}' fails at {values}: {error}") from error


def parse_constraint(text: str, superblocks: Sequence[str]) -> Constraint:
    """A constraint from the command line.

    Args:
        text: `none`, `non-increasing`, an expression, or a YAML file with a list of expressions
            (or of these words) that must all hold.
        superblocks: names of the superblocks, in order.

    Raises:
        UsageError: the file cannot be read, an expression is none or names no superblock, or a
            superblock has a name that means a place.
    """
    for name in superblocks:
        if _POSITION.fullmatch(name):
            raise UsageError(f"superblock '{name}' has a name that means the one at that place")
    names = tuple(
        (f"c{number}", name) if name.isidentifier() else (f"c{number}",)
        for number, name in enumerate(superblocks, 1)
    )
    parts = _listed(Path(text)) if text.endswith((".yaml", ".yml")) else [text]
    known = {name for own in names for name in own}
    return Constraint(
        text,
        FALLING in parts,
        tuple(_compiled(part, known) for part in parts if part not in {NONE, FALLING}),
        names,
    )


def _listed(path: Path) -> list[str]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"--constraint '{path}' cannot be read: {error}") from error
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise UsageError(f"--constraint '{path}' must hold a list of expressions")
    return values


def _compiled(text: str, names: set[str]) -> CodeType:
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"--constraint '{text}' is no expression: {error}") from error
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED):
            raise UsageError(
                f"--constraint '{text}': only ratios, numbers, arithmetic, comparisons, and, or, "
                "not are understood"
            )
        if isinstance(node, ast.Name) and node.id not in names:
            known = ", ".join(sorted(names))
            raise UsageError(f"--constraint '{text}': there is no '{node.id}', only {known}")
        if isinstance(node, ast.Constant) and type(node.value) not in {int, float, bool}:
            raise UsageError(f"--constraint '{text}': {node.value!r} is no number")
    return compile(tree, "<constraint>", "eval")
