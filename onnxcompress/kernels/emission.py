"""Programs in the file: local functions that ONNX Runtime inlines, and computes when it loads.

A layer's weight is what a call of such a function makes of a few constants. The file holds the
program and shows it; the network that runs is the one with the weight in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.kernels.dictionary import LayerDictionary
from onnxcompress.kernels.families import library, original
from onnxcompress.kernels.induction import LayerPrograms

DOMAIN = "onnxcompress.dsl"
SHARED_KERNELS = "SharedKernels"
FIRST_OPSET = 11
"""Kernels are put into their places by ScatterND, which is there since this version."""

_ADDING_OPSET = 16
"""Since this one it adds to what is there."""


def shared_kernels(opset: int, dtype: np.dtype[np.generic]) -> onnx.FunctionProto:
    """`SharedKernels(entries, index, scale, shape)`: kernel i is entry index[i] times scale[i].

    entries [K, cells], index [n] (whole numbers of any type), scale [n, 1], shape of the weight.

    Args:
        opset: version of ONNX's own operators that the model uses.
        dtype: of the weight.
    """
    nodes = [
        onnx.helper.make_node("Cast", ["index"], ["place"], to=onnx.TensorProto.INT64),
        onnx.helper.make_node("Gather", ["entries", "place"], ["kernels"], axis=0),
        onnx.helper.make_node("Mul", ["kernels", "scale"], ["scaled"]),
        onnx.helper.make_node("Reshape", ["scaled", "shape"], ["weight"]),
    ]
    function = onnx.helper.make_function(
        DOMAIN,
        SHARED_KERNELS,
        ["entries", "index", "scale", "shape"],
        ["weight"],
        nodes,
        [onnx.helper.make_opsetid("", opset)],
        doc_string="Every kernel of a layer is an entry of a learned dictionary times a number.",
    )
    return for_halves(function) if dtype == np.float16 else function


_IN_FLOAT = frozenset({"entries", "scale", "bank", "values"})
"""Inputs of our functions that are of the weight's type."""


def for_halves(function: onnx.FunctionProto) -> onnx.FunctionProto:
    """The same function for weights in half precision, worked out in single precision.

    ONNX Runtime has no arithmetic in half precision on the CPU, where it folds constants: what it
    cannot fold it would compute anew for every input.
    """
    wide, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    floats = [name for name in function.input if name in _IN_FLOAT]
    before = [onnx.helper.make_node("Cast", [n], [f"{n}_wide"], to=wide) for n in floats]
    (output,) = function.output
    renamed = {name: f"{name}_wide" for name in (*floats, output)}
    nodes = []
    for node in function.node:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        copy.output[:] = [renamed.get(name, name) for name in node.output]
        nodes.append(copy)
    after = onnx.helper.make_node("Cast", [renamed[output]], [output], to=half)
    found = onnx.FunctionProto()
    found.CopyFrom(function)
    del found.node[:]
    found.node.extend([*before, *nodes, after])
    return found


def operands(
    found: LayerDictionary, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> dict[str, NDArray[np.generic]]:
    """What a call of `shared_kernels` reads, by name of the function's input.

    Args:
        found: the dictionary.
        shape: of the weight.
        dtype: of the weight.
    """
    return {
        "entries": found.entries.astype(dtype),
        "index": found.choice.ravel().astype(_smallest(len(found.entries))),
        "scale": found.scales.reshape(-1, 1).astype(dtype),
        "shape": np.array(shape, dtype=np.int64),
    }


@dataclass(frozen=True)
class Call:
    """Some programs of a layer that are alike, as one call of a local function.

    Attributes:
        function: the function, `(bank [outputs, channels, cells], place [m, 2], values [m, d])`
            and, for tetrominoes, `which` [m]; it answers with the bank and the kernels in it.
        operands: what it reads besides the bank, by name.
    """

    function: onnx.FunctionProto
    operands: dict[str, NDArray[np.generic]]


def program_calls(programs: LayerPrograms, dtype: np.dtype[np.generic], opset: int) -> list[Call]:
    """The programs of a layer as calls, one for every kind of atom.

    Where a kernel has several atoms of one kind there is a call for each, so that no place comes
    twice in one.

    Args:
        programs: the programs.
        dtype: of the weight.
        opset: version of ONNX's own operators that the model uses, at least `FIRST_OPSET`.
    """
    size = programs.words.size
    found: dict[tuple[str, int], list[tuple[tuple[int, ...], int, NDArray[np.float64]]]] = {}
    numbers = {
        (family.kind, family.placement): sum(f.kind == family.kind for f in library(size)[:at])
        for at, family in enumerate(library(size))
    }
    for place, index in np.ndenumerate(programs.choice):
        seen: dict[str, int] = {}
        at = 0
        for term in programs.words.forms[index].terms:
            turn = seen[term.kind] = seen.get(term.kind, -1) + 1
            values = programs.values[place][at : at + term.dimensions]
            at += term.dimensions
            which = numbers.get((term.kind, term.placement), 0)
            found.setdefault((term.kind, turn), []).append((place, which, values))
    kinds = [family.kind for family in library(size)] + ["original"]
    order = {kind: at for at, kind in enumerate(dict.fromkeys(kinds))}
    calls = []
    for kind, turn in sorted(found, key=lambda key: (order[key[0]], key[1])):
        mine = found[kind, turn]
        extent = max(programs.choice.shape)
        places = np.array([place for place, _, _ in mine], dtype=_smallest(extent))
        given = np.stack([values for _, _, values in mine]).astype(dtype)
        read: dict[str, NDArray[np.generic]] = {"place": places, "values": given}
        if len(_bases(kind, size)) > 1:
            read["which"] = np.array([which for _, which, _ in mine], dtype=np.uint8)
        calls.append(Call(_function(kind, size, dtype, opset), read))
    return calls


def _bases(kind: str, size: int) -> Sequence[NDArray[np.float64]]:
    """Bases [d, cells] of the families of a kind, in the order of the library."""
    families = (*library(size), original(size))
    return [family.basis for family in families if family.kind == kind]


def _function(kind: str, size: int, dtype: np.dtype[np.generic], opset: int) -> onnx.FunctionProto:
    """`Kind(bank, place, values[, which])`: kernels of a kind, added to a bank.

    values [m, d] times the kind's basis [d, cells] are the kernels; of tetrominoes, which lie in
    several places, `which` says where.
    """
    bases = _bases(kind, size)
    table = np.stack([basis[0] for basis in bases]) if len(bases) > 1 else bases[0]
    narrow = dtype == np.float16
    tensor = onnx.numpy_helper.from_array(table.astype(np.float32 if narrow else dtype), "table")
    nodes = [onnx.helper.make_node("Constant", [], ["table"], value=tensor)]
    inputs = ["bank", "place", "values"]
    if len(bases) > 1:
        inputs.append("which")
        nodes += [
            onnx.helper.make_node("Cast", ["which"], ["laid"], to=onnx.TensorProto.INT64),
            onnx.helper.make_node("Gather", ["table", "laid"], ["masks"], axis=0),
            onnx.helper.make_node("Mul", ["masks", "values"], ["kernels"]),
        ]
    else:
        nodes.append(onnx.helper.make_node("MatMul", ["values", "table"], ["kernels"]))
    nodes += [
        onnx.helper.make_node("Cast", ["place"], ["at"], to=onnx.TensorProto.INT64),
        *_added(opset),
    ]
    function = onnx.helper.make_function(
        DOMAIN,
        _name(kind, size, dtype),
        inputs,
        ["added"],
        nodes,
        [onnx.helper.make_opsetid("", opset)],
        doc_string=f"Kernels of kind '{kind}', added to those that are there.",
    )
    return for_halves(function) if narrow else function


def _added(opset: int) -> list[onnx.NodeProto]:
    """The bank and the kernels in their places, no place twice."""
    if opset >= _ADDING_OPSET:
        inputs = ["bank", "at", "kernels"]
        return [onnx.helper.make_node("ScatterND", inputs, ["added"], reduction="add")]
    return [
        onnx.helper.make_node("Sub", ["bank", "bank"], ["nothing"]),
        onnx.helper.make_node("ScatterND", ["nothing", "at", "kernels"], ["spread"]),
        onnx.helper.make_node("Add", ["bank", "spread"], ["added"]),
    ]


def _name(kind: str, size: int, dtype: np.dtype[np.generic]) -> str:
    """EdgeFilterVertical_3x3, SquareTetromino_3x3, OriginalKernel_3x3; with the type if unusual."""
    suffix = "" if dtype == np.float32 else f"_{np.dtype(dtype).name}"
    return f"{_word(kind)}_{size}x{size}{suffix}"


def _word(kind: str) -> str:
    if kind == "original":
        return "OriginalKernel"
    if kind.startswith("edge-"):
        return "EdgeFilter" + kind.removeprefix("edge-").capitalize()
    return kind.capitalize() + "Tetromino"


def kind_of(function: str) -> str:
    """The kind of atoms that a function of the language makes; empty for other functions."""
    kinds = [family.kind for family in (*library(3), original(3))]
    words = {_word(kind): kind for kind in kinds}
    return words.get(function.split("_")[0], "")


def _smallest(count: int) -> type[np.integer]:
    """The smallest type that counts up to so many; of up to 65,536 one that counts as a weight."""
    return np.uint8 if count <= 256 else np.uint16 if count <= 65536 else np.int32
