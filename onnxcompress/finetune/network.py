"""An ONNX graph as a PyTorch module: initializers are its parameters, nodes are what it does."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

import onnx
import onnx.inliner
import torch

from onnxcompress.errors import ModelError
from onnxcompress.finetune.operators.call import (
    Call,
    Operator,
    UnsupportedError,
    as_tensor,
    widened,
)
from onnxcompress.finetune.recomputation import in_parts
from onnxcompress.finetune.steps import STANDARD, Step, channels_last, joined, operator_of, together
from onnxcompress.finetune.trained import trained_names
from onnxcompress.graph.view import attributes
from onnxcompress.load.checks import one_line
from onnxcompress.runtime import Array

Values = dict[str, torch.Tensor]


class Network(torch.nn.Module):
    """A graph that can be run and trained.

    BatchNormalization follows the mode of the module: in training it normalises by the batch and
    keeps running statistics, as in PyTorch, unless it is frozen.

    Attributes:
        inputs: names of the inputs.
        outputs: names of the outputs.
        trained: names of the constants that are parameters.
        running: names of the means and variances that BatchNormalization keeps.
        steps: nodes in the order in which they are carried out.

    Raises:
        UnsupportedError: an operator, or a form of it, is not known; names operator and node.
        ModelError: the graph is not valid.
    """

    momentum = 0.1
    """How far running statistics follow a batch."""
    frozen = False
    """Whether BatchNormalization keeps to its running statistics in training, too."""
    recompute = False
    """Whether the way back computes again what the way there made, in place of keeping it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self._settled = False
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        graph = model.graph
        self.opset = max((o.version for o in model.opset_import if o.domain in STANDARD), default=0)
        held = {tensor.name for tensor in graph.initializer}
        self.inputs = tuple(i.name for i in graph.input if i.name not in held)
        self.outputs = tuple(output.name for output in graph.output)
        self._types = {
            value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)
        }
        self._slots: dict[str, str] = {}
        self._held: Values = {}
        self._norms = torch.nn.ModuleDict()
        self._placed: dict[str, tuple[str, str, str]] = {}
        self.running = tuple(
            name
            for node in graph.node
            if node.op_type == "BatchNormalization"
            for name in node.input[3:5]
        )
        self.trained = self._hold_constants(model)
        self.steps = self._prepared(graph)

    def _hold_constants(self, model: onnx.ModelProto) -> tuple[str, ...]:
        """Take up initializers and Constant nodes: weights as parameters, the rest as buffers."""
        if model.graph.sparse_initializer:
            raise UnsupportedError("sparse initializers are not known")
        trained = trained_names(model)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and "value" in (given := attributes(node)):
                constants[node.output[0]] = given["value"]
        for name, proto in constants.items():
            value = as_tensor(proto)
            if name in trained:
                self._keep(name, torch.nn.Parameter(value))
            elif value.is_floating_point():
                self._keep(name, value)
            else:
                self._held[name] = value
        return trained

    def _keep(self, name: str, value: torch.Tensor) -> None:
        slot = f"t{len(self._slots)}"
        self._slots[name] = slot
        if isinstance(value, torch.nn.Parameter):
            self.register_parameter(slot, torch.nn.Parameter(channels_last(value.data)))
        else:
            self.register_buffer(slot, value, persistent=True)

    def _prepared(self, graph: onnx.GraphProto) -> list[Step]:
        """Steps in order; what depends on fixed constants alone is computed once."""
        fixed = {*self._held, *self._slots} - set(self.trained)
        kept: list[tuple[onnx.NodeProto, Operator]] = []
        for node in joined(graph.node, self.outputs):
            if node.output[0] in self._slots or node.output[0] in self._held:
                continue
            operator = operator_of(node)
            if all(not n or (n in fixed and n not in self.running) for n in node.input):
                with torch.no_grad():
                    step = Step(node, operator, attributes(node), ())
                    for name, value in self._run(step, self._constants(), self.device).items():
                        if value.is_floating_point():
                            self._keep(name, value)
                        else:
                            self._held[name] = value
                        fixed.add(name)
                continue
            kept.append((node, operator))
        last: dict[str, int] = {}
        for at, (node, _) in enumerate(kept):
            last.update(dict.fromkeys((*node.input, *node.output), at))
        lasting = {*self._held, *self._slots, *self.outputs, ""}
        return [
            Step(
                node,
                operator,
                attributes(node),
                tuple(n for n in {*node.input, *node.output} if last[n] == at and n not in lasting),
            )
            for at, (node, operator) in enumerate(kept)
        ]

    def shapes(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """The shape of everything that is computed from some inputs."""
        made = [name for step in self.steps for name in step.node.output if name]
        mode = self.training
        with torch.no_grad():
            seen = self.eval()(feeds, also=made)
        self.train(mode)
        return {name: tuple(value.shape) for name, value in seen.items()}

    def value(self, name: str) -> torch.Tensor:
        """A constant, trained or not."""
        return self._constants()[name]

    def slot(self, name: str) -> str:
        """The name under which the module holds a constant."""
        return self._slots[name]

    def parameter(self, name: str) -> torch.nn.Parameter:
        """A trained constant by its name in the graph."""
        return self.get_parameter(self._slots[name])

    def insert(self, output: str, norm: torch.nn.Module, weight: str, bias: str) -> None:
        """Put a normalisation behind the convolution that makes `output` of these two constants.

        The bias, which it takes away again, is not trained any more.
        """
        key = f"n{len(self._placed)}"
        self.parameter(bias).requires_grad_(False)
        self._norms[key] = norm
        self._placed[output] = (key, weight, bias)

    def settle(self) -> None:
        """Normalise by running statistics from here on, until the next call of `train`."""
        self._settled = True
        for norm in self._norms.values():
            norm.eval()

    def train(self, mode: bool = True) -> Network:
        """Set the mode, as of every module."""
        self._settled = False
        super().train(mode)
        return self

    def changing(self) -> Values:
        """What training changes: parameters, and the statistics of normalisations."""
        still = {
            slot
            for name, slot in self._slots.items()
            if name not in self.trained and name not in self.running
        }
        return {name: value for name, value in self.state_dict().items() if name not in still}

    @property
    def inserted(self) -> list[tuple[Any, str, str]]:
        """What was put behind convolutions, with the names of their weights and biases."""
        return [(self._norms[key], weight, bias) for key, weight, bias in self._placed.values()]

    def _constants(self) -> Values:
        return self._held | {name: getattr(self, slot) for name, slot in self._slots.items()}

    def forward(self, feeds: Mapping[str, torch.Tensor], also: Collection[str] = ()) -> Values:
        """Compute the outputs.

        Args:
            feeds: every input by name, of the types that the interpreter computes in.
            also: further tensors that are wanted.

        Returns:
            Outputs and what else was wanted, by name.

        Raises:
            UnsupportedError: a form of an operator is not known.
            ModelError: the inputs do not fit the graph.
        """
        values = self._constants()
        values.update({name: channels_last(feeds[name]) for name in self.inputs})
        if self.recompute and torch.is_grad_enabled():
            norms: list[Any] = [self, *self._norms.values()]
            values = in_parts(
                lambda v, part: self._through(v, part, also), self.steps, values, norms
            )
        else:
            values = self._through(values, self.steps, also)
        return {name: values[name] for name in (*self.outputs, *also)}

    def _through(self, known: Values, steps: Sequence[Step], also: Collection[str]) -> Values:
        """What is known once some steps are carried out, and still read behind them."""
        values, device = dict(known), self.device
        for step in steps:
            values.update(self._run(step, values, device))
            for name in step.done:
                if name not in also:
                    del values[name]
        return values

    def given(self, feeds: Mapping[str, Array]) -> Values:
        """Arrays as the tensors that this network computes with."""
        return {
            name: widened(feeds[name], self._types[name]).to(self.device) for name in self.inputs
        }

    def answers(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for arrays, in the types that the graph declares."""
        with torch.no_grad():
            made = self(self.given(feeds))
        return {
            name: made[name]
            .cpu()
            .numpy()
            .astype(onnx.helper.tensor_dtype_to_np_dtype(self._types[name]))
            for name in self.outputs
        }

    def _run(self, step: Step, values: Values, device: torch.device) -> Values:
        node = step.node
        operands = tuple(values[name] if name else None for name in node.input)
        operands = together(node, operands, device)
        call = Call(node, step.attributes, self.opset, operands, device)
        try:
            made = self._normalised(call) if self._is_norm(node) else step.operator(call)
        except UnsupportedError as error:
            raise UnsupportedError(
                f"node '{node.name}' ({node.op_type}) cannot be trained: {error}"
            ) from error
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ModelError(
                f"node '{node.name}' ({node.op_type}) fails in PyTorch: {one_line(error)}"
            ) from error
        results = (made,) if isinstance(made, torch.Tensor) else made
        placed = self._placed.get(node.output[0])
        if placed is not None:
            results = (self._norms[placed[0]](results[0]),)
        return {name: value for name, value in zip(node.output, results, strict=False) if name}

    def _is_norm(self, node: onnx.NodeProto) -> bool:
        by_batch = self.training and not self.frozen and not self._settled
        return node.op_type == "BatchNormalization" and by_batch

    def _normalised(self, call: Call) -> torch.Tensor:
        """BatchNormalization by the batch; running statistics follow."""
        _, scale, bias, mean, variance = (call.input(at) for at in range(5))
        return torch.nn.functional.batch_norm(
            call.x,
            mean,
            variance,
            scale,
            bias,
            training=True,
            momentum=self.momentum,
            eps=call.get("epsilon", 1e-5),
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(
            (v.device for v in chain(self.parameters(), self.buffers())), torch.device("cpu")
        )
