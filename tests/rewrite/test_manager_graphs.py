"""Rewrites judged by the whole graph: results that are invalid, and graphs with subgraphs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from onnxcompress.errors import PassError
from onnxcompress.graph.editor import Editor
from onnxcompress.load.canonical import canonicalise
from onnxcompress.rewrite.manager import Rewritten

Act = Callable[[str, Editor], None]
CarryOut = Callable[..., Rewritten]


def invalid(node: str, edit: Editor) -> None:
    """An attribute that Conv does not have: the checker refuses the whole model."""
    old = edit.node(node)
    inputs = list(old.inputs)
    edit.replace(old, [gs.Node("Conv", f"{node}_new", {"beta": 1.0}, inputs)])


def misfit(node: str, edit: Editor) -> None:
    """A weight of another rank: shape inference refuses the whole model."""
    old = edit.node(node)
    weight = edit.constant(f"{node}_flat", np.ones((4, 4, 1), np.float32))
    edit.replace(old, [gs.Node("Conv", f"{node}_new", {}, [old.inputs[0], weight])])


@pytest.mark.parametrize("act", [invalid, misfit])
def test_a_rewrite_that_makes_the_model_invalid(
    model: onnx.ModelProto, carry_out: CarryOut, halve: Act, act: Act
) -> None:
    """Rolled back, or refused with the name of the pass that did it."""
    message = ""
    try:
        result = carry_out(model, {"a": halve, "c": act})
    except PassError as error:
        message = str(error)
    if message:
        for word in ("'acting'", "'c'"):
            assert word in message
        assert "\n" not in message
    else:
        assert [c.site.node for c in result.applied] == ["a"]
        assert [refusal.node for refusal in result.rolled_back] == ["c"]


def test_nodes_with_subgraphs_are_no_strays(carry_out: CarryOut, halve: Act) -> None:
    """An If elsewhere in the graph comes through unchanged, and nobody is blamed for it."""
    made = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17]>
    row (float[1, 4, 2, 3] x, bool q) => (float[1, 4, 2, 3] y)
    {
      [a] t = Conv <kernel_shape = [1, 1]> (x, wa)
      [choice] y = If (q) <
        then_branch = yes () => (float[1, 4, 2, 3] k) { [left] k = Relu (t) },
        else_branch = no () => (float[1, 4, 2, 3] l) { [right] l = Neg (t) }
      >
    }
    """)
    values = np.ones((4, 4, 1, 1), np.float32)
    made.graph.initializer.append(onnx.numpy_helper.from_array(values, "wa"))
    result = carry_out(canonicalise(made).model, {"a": halve})
    assert result.rolled_back == ()
    assert [node.name for node in result.model.graph.node] == ["a_half", "a_twice", "choice"]
