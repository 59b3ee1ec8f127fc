"""Programs in words that one can read, and read back."""

from __future__ import annotations

import ast
from typing import Any

from onnxcompress.errors import UsageError
from onnxcompress.kernels.language import (
    VERTICAL,
    EdgeFilter,
    Entry,
    OriginalKernel,
    Outer,
    Program,
    Rotate,
    Scale,
    Sum,
    Tetromino,
    Transpose,
)
from onnxcompress.kernels.tetrominoes import SHAPES

_TETROMINO = "-tetromino"


def written(program: Program, digits: int = 17) -> str:
    """A program as text; with 17 digits it reads back as the same program.

    Args:
        program: the program.
        digits: significant digits of numbers.
    """

    def number(value: float) -> str:
        return f"{value:.{digits}g}"

    def row(values: tuple[float, ...]) -> str:
        return "[" + ", ".join(map(number, values)) + "]"

    match program:
        case OriginalKernel(rows):
            return f"original-kernel({', '.join(map(row, rows))})"
        case EdgeFilter(values, orientation):
            extra = "" if orientation == VERTICAL else f', "{orientation}"'
            return f"edge-filter({row(values)}{extra})"
        case Tetromino(shape, x, y, fill, turns, mirrored):
            extra = f", {turns}" if turns or mirrored else ""
            extra += ", True" if mirrored else ""
            return f"{shape}{_TETROMINO}({x}, {y}, {number(fill)}{extra})"
        case Entry(name):
            return f'entry("{name}")'
        case Outer(column, values):
            return f"outer({row(column)}, {row(values)})"
        case Sum(terms):
            return f"sum({', '.join(written(term, digits) for term in terms)})"
        case Scale(factor, of):
            return f"scale({number(factor)}, {written(of, digits)})"
        case Transpose(of):
            return f"transpose({written(of, digits)})"
        case Rotate(of, turns):
            return f"rotate({written(of, digits)}, {turns})"


def read(text: str) -> Program:
    """A program from its text.

    Raises:
        UsageError: it is none.
    """
    try:
        # Names with hyphens are no Python names; everything else is Python's own syntax.
        for name in ("original-kernel", "edge-filter", *(s + _TETROMINO for s in SHAPES)):
            text = text.replace(name + "(", name.replace("-", "_") + "(")
        return _built(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError) as error:
        raise UsageError(f"not a program: {text[:120]!r} ({error})") from error


def _built(node: ast.expr) -> Program:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.keywords:
        raise ValueError("a program is a name with operands in brackets")
    name, operands = node.func.id, node.args
    match name:
        case "sum":
            return Sum(tuple(map(_built, operands)))
        case "scale":
            factor, of = operands
            return Scale(float(_value(factor)), _built(of))
        case "transpose":
            (of,) = operands
            return Transpose(_built(of))
        case "rotate":
            of, turns = operands
            return Rotate(_built(of), int(_value(turns)))
    values = [_value(operand) for operand in operands]
    match name:
        case "original_kernel":
            return OriginalKernel(tuple(_floats(value) for value in values))
        case "edge_filter":
            return EdgeFilter(_floats(values[0]), *values[1:])
        case "entry":
            return Entry(*values)
        case "outer":
            column, row = values
            return Outer(_floats(column), _floats(row))
    shape = name.removesuffix(_TETROMINO.replace("-", "_"))
    if shape == name:
        raise ValueError(f"'{name}' is unknown")
    x, y, fill, *rest = values
    return Tetromino(shape, int(x), int(y), float(fill), *rest)


def _value(node: ast.expr) -> Any:
    return ast.literal_eval(node)


def _floats(values: list[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
