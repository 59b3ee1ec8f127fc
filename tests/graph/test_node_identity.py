"""Attributes are restored by node identity: a replaced node's identity must not be handed on."""

from __future__ import annotations

import gc

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.graph.editor import Editor


def test_a_new_node_never_inherits_the_attributes_of_a_replaced_one() -> None:
    weight = np.ones((2, 2, 3, 3), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node(
                "Conv",
                ["x" if i == 0 else f"t{i}", f"w{i}"],
                [f"t{i + 1}"],
                name=f"conv{i}",
                kernel_shape=[3, 3],
                pads=[1, 1, 1, 1],
            )
            for i in range(40)
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 8, 8])],
        [helper.make_tensor_value_info("t40", TensorProto.FLOAT, [1, 2, 8, 8])],
        [numpy_helper.from_array(weight, f"w{i}") for i in range(40)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    editor = Editor(model)
    for i in range(40):
        node = editor.node(f"conv{i}")
        constant = editor.constant("k", np.ones((2, 2, 1, 1), np.float32))
        source = node.inputs[0]
        name = node.name
        editor.replace(
            node, [gs.Node("Conv", f"{name}_new", {"kernel_shape": [1, 1]}, [source, constant])]
        )
        # The replaced node is freed here, and its address is free for the next one.
        del node
        gc.collect()
    for node in editor.finish().graph.node:
        assert [a.name for a in node.attribute] == ["kernel_shape"]
        assert list(node.attribute[0].ints) == [1, 1]
    onnx.checker.check_model(editor.finish())
