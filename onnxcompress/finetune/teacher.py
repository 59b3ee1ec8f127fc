"""Who answers for the teacher: on the CPU ONNX Runtime, which takes half as long as PyTorch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import onnx
import onnx.inliner
import torch

from onnxcompress.calibrate.answers import tapped
from onnxcompress.finetune.steps import channels_last
from onnxcompress.runtime import Execution, Session, open_session

Values = dict[str, torch.Tensor]
_OTHER_FLOATS = {onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}


class Teacher(Protocol):
    """What answers a batch."""

    def __call__(self, feeds: Mapping[str, torch.Tensor], also: Collection[str] = ()) -> Values:
        """Outputs, and further tensors that are wanted, by name."""


class _Answering:
    """A session that answers from any thread."""

    def __init__(self, session: Session, model: onnx.ModelProto) -> None:
        self._session = session
        self._outputs = [output.name for output in model.graph.output]
        self._types = {
            value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            for value in model.graph.input
        }

    def __call__(self, feeds: Mapping[str, torch.Tensor], also: Collection[str] = ()) -> Values:
        """See `Teacher`; tensors on the way only if the session was opened for them."""
        arrays = {
            name: np.ascontiguousarray(feeds[name], dtype=self._types[name])
            for name in self._session.input_names
        }
        made = dict(zip(self._session.output_names, self._session.run(arrays), strict=True))
        return {
            name: channels_last(torch.from_numpy(made[name]))
            for name in (*self._outputs, *also)
            if made[name].dtype == np.float32
        }


def is_single(model: onnx.ModelProto) -> bool:
    """Whether all floating-point numbers that it declares are of single precision.

    In training others are widened; a session computes as the graph says.
    """
    graph = model.graph
    kinds = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    kinds |= {tensor.data_type for tensor in graph.initializer}
    return kinds.isdisjoint(_OTHER_FLOATS)


@contextmanager
def answering(model: onnx.ModelProto, also: Sequence[str], threads: int) -> Iterator[Teacher]:
    """ONNX Runtime on the CPU, for the duration of a `with` block.

    Args:
        model: in single precision (`is_single`).
        also: tensors on the way that are asked for.
        threads: of one answer; several can be asked for at the same time.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    wanted = dict.fromkeys((*(output.name for output in model.graph.output), *also))
    # Threads that spin would take time from training, which goes on while they wait.
    execution = Execution(threads=threads, spinning=False)
    with open_session(tapped(model, list(wanted)), execution) as session:
        yield _Answering(session, model)
