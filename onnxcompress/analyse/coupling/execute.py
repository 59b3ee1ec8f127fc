"""Runs single nodes in ONNX Runtime: the kernel that moves the data also moves the ids."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.runtime import Array, Execution, Session, open_session

_EXECUTION = Execution(threads=1, optimise=False, spinning=False)


class NodeRunner:
    """Runs copies of a model's nodes on other data; use in a `with` block.

    Sessions are kept for nodes that differ in nothing but names; they have one thread each, hence
    no thread pools that could disturb one another.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._opsets = list(model.opset_import)
        self._ir_version = max(model.ir_version, 4)
        self._stack = ExitStack()
        self._sessions: dict[bytes, Session] = {}

    def __enter__(self) -> NodeRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sessions.clear()
        self._stack.close()

    def run(self, node: onnx.NodeProto, operands: Sequence[Array | None]) -> list[Array]:
        """The outputs of `node` for these operands (None for one that is left out).

        Raises:
            ModelError: ONNX Runtime has no kernel for these types, or fails.
        """
        bare = onnx.NodeProto()
        bare.CopyFrom(node)
        bare.ClearField("metadata_props")
        bare.ClearField("doc_string")
        bare.name = ""
        bare.input[:] = [f"i{n}" if v is not None else "" for n, v in enumerate(operands)]
        bare.output[:] = [f"o{n}" if name else "" for n, name in enumerate(node.output)]
        kinds = [None if v is None else v.dtype.str for v in operands]
        key = bare.SerializeToString(deterministic=True) + repr(kinds).encode()
        feeds = {f"i{n}": v for n, v in enumerate(operands) if v is not None}
        if key not in self._sessions:
            model = self._model(bare, feeds)
            self._sessions[key] = self._stack.enter_context(open_session(model, _EXECUTION))
        return self._sessions[key].run(feeds)

    def _model(self, node: onnx.NodeProto, feeds: dict[str, Array]) -> onnx.ModelProto:
        inputs = [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), None
            )
            for name, value in feeds.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "node", inputs, outputs)
        return onnx.helper.make_model(
            graph, opset_imports=self._opsets, ir_version=self._ir_version
        )


def as_wide(array: Array) -> NDArray[np.float64]:
    """Any numeric array in float64."""
    return np.asarray(array).astype(np.float64)
