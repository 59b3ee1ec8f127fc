"""The oracle of the coupling tests: masks behind the producers, built with nothing but onnx.

A test builds a model and says what it expects; `pruning.check` does the rest:

    def test_chain(pruning: Any) -> None:
        pruning.check(model, widths={"first": 6}, refused={"second": "graph's output"})

`check` brings the model into canonical form, couples it, removes many sets of channels, and
compares every result in ONNX Runtime (without its optimisations) with the canonical model in which
a Mul behind every producer forces the same channels to zero. The masks are extra inputs of one
masked model, so that one session serves all removed sets. None of this uses code of the engine but
`couple` and `remove_channels`, which are under test, and the lanes of producers, which say what
removal of a channel means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxcompress.analyse.coupling.engine import couple
from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import analyse
from onnxcompress.analyse.sizes import representative_sizes
from onnxcompress.load.canonical import canonicalise
from onnxcompress.plan.channels.remove import remove_channels, zero_channels

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


Sizes = Mapping[str, Sequence[int]]


Removed = dict[str, list[int]]


Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model in canonical form and its coupling.

    Attributes:
        model: the canonical model.
        coupling: what the engine says about it.
        sizes: the sizes it was coupled at.
    """

    model: onnx.ModelProto
    coupling: Coupling
    sizes: Mapping[str, tuple[int, ...]]

    @property
    def widths(self) -> dict[str, int]:
        """Width of every group by name."""
        return {group.name: group.width for group in self.coupling.groups}

    @property
    def layers(self) -> list[str]:
        """Names of the layers of the main graph."""
        return [node.name for node in self.model.graph.node if node.op_type in LAYERS]

    def node(self, name: str) -> onnx.NodeProto:
        """The canonical node called `name`."""
        return next(node for node in self.model.graph.node if node.name == name)


class Pruning:
    """Couples models and compares removal with zeroing; see the module's docstring."""

    def __init__(self, open_session: Callable[[onnx.ModelProto], ort.InferenceSession]) -> None:
        self._open = open_session

    @staticmethod
    def case(
        model: onnx.ModelProto, *, sizes: Sizes | None = None, fold_constants: bool = False
    ) -> Case:
        """The canonical form of a model, coupled.

        Args:
            model: any valid model.
            sizes: sizes of inputs with dynamic dimensions besides the batch.
            fold_constants: whether onnxslim may simplify first; off, so that the construct under
                test is what the engine sees.
        """
        canonical = canonicalise(model, fold_constants=fold_constants).model
        found = representative_sizes(canonical, sizes)
        facts = analyse(canonical, found)
        return Case(canonical, couple(facts.view, found, facts.shapes()), found)

    def check(
        self,
        model: onnx.ModelProto,
        *,
        widths: Mapping[str, int] | None = None,
        refused: Mapping[str, str | Sequence[str]] | None = None,
        sizes: Sizes | None = None,
        also: Sequence[Sizes] = (),
        tolerance: float = 0.0,
        feeds: Callable[[onnx.ModelProto, Sizes], Feeds] | None = None,
        fold_constants: bool = False,
        silent: bool = False,
    ) -> Case:
        """Couple a model, check what is said about it, and remove many sets of channels from it.

        Args:
            model: any valid model.
            widths: the groups expected, by name of their first producer, with their widths; `{}`
                for none at all. Left out, any groups will do, but there must be one.
            refused: fragments that the reason of each layer must contain. Layers that are not
                named must be in a group or refused with some reason.
            sizes: sizes of inputs with dynamic dimensions besides the batch.
            also: further sizes, at which the results are compared too.
            tolerance: how far results may be apart, relative to the largest magnitude of each
                output; 0 asks for the same bits. Derive it from the arithmetic at hand.
            feeds: makes the inputs from the canonical model and sizes; `whole_feeds` by default.
            fold_constants: whether onnxslim may simplify first.
            silent: allow that no removal changes the outputs (otherwise each group must matter).

        Returns:
            The coupled model, for further looks at it.
        """
        case = self.case(model, sizes=sizes, fold_constants=fold_constants)
        self.assert_stated(case, widths, refused or {})
        self.assert_exact(
            case, also=also, tolerance=tolerance, feeds=feeds or self.whole_feeds, silent=silent
        )
        return case

    @staticmethod
    def assert_stated(
        case: Case,
        widths: Mapping[str, int] | None,
        refused: Mapping[str, str | Sequence[str]],
    ) -> None:
        """The groups are those expected, and no layer goes without group and reason."""
        coupling = case.coupling
        said = f"groups {case.widths}, refusals {dict(coupling.refusals)}"
        if widths is None:
            assert case.widths, said
        else:
            assert case.widths == dict(widths), said
        for layer, fragments in refused.items():
            assert layer in coupling.refusals, f"'{layer}' was expected to be refused: {said}"
            for text in [fragments] if isinstance(fragments, str) else fragments:
                assert text in coupling.refusals[layer], said
        for layer in case.layers:
            grouped = coupling.group_of(layer) is not None
            assert grouped != bool(coupling.refusals.get(layer)), f"'{layer}': {said}"

    def assert_exact(
        self,
        case: Case,
        *,
        also: Sequence[Sizes] = (),
        tolerance: float = 0.0,
        feeds: Callable[[onnx.ModelProto, Sizes], Feeds] | None = None,
        silent: bool = False,
    ) -> None:
        """Removed equals zeroed, for many removed sets and for none."""
        self.assert_nothing_changes_nothing(case)
        if not case.widths:
            return
        before = case.model.SerializeToString(deterministic=True)
        make = feeds or self.whole_feeds
        everywhere = [make(case.model, sizes) for sizes in (case.sizes, *also)]
        masked = self._open(self.masked(case))
        whole = [_run(masked, {**fed, **self.masks(case, {})}) for fed in everywhere]
        plain = self._open(case.model)
        for fed, expected in zip(everywhere, whole, strict=True):
            _assert_close(_run(plain, fed), expected, 0.0, "masks of ones change nothing")
        live: set[str] = set()
        for removed in self.removals(case):
            result = remove_channels(case.model, case.coupling, removed)
            self.assert_valid(case, result, removed)
            session = self._open(result)
            for fed, untouched in zip(everywhere, whole, strict=True):
                expected = _run(masked, {**fed, **self.masks(case, removed)})
                _assert_close(_run(session, fed), expected, tolerance, f"removed {removed}")
                if not all(map(np.array_equal, expected, untouched)):
                    live |= set(removed)
        # The engine's own reference, with which it proves its results to users, is right, too.
        zeroed = self._open(zero_channels(case.model, case.coupling, removed))
        for fed in everywhere:
            expected = _run(masked, {**fed, **self.masks(case, removed)})
            _assert_close(_run(zeroed, fed), expected, 0.0, f"zeroed {removed}")
        assert silent or live == set(case.widths), "removal is not visible at any output"
        assert case.model.SerializeToString(deterministic=True) == before

    @staticmethod
    def remove(case: Case, removed: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
        """The model without these channels, for a look at its nodes and weights."""
        return remove_channels(case.model, case.coupling, removed)

    @staticmethod
    def masked(case: Case) -> onnx.ModelProto:
        """The model with a Mul behind every producer; its masks are extra inputs `mask::TENSOR`."""
        result = onnx.ModelProto()
        result.CopyFrom(case.model)
        del result.graph.node[:]
        kinds = {
            value.name: value.type.tensor_type.elem_type
            for value in (*case.model.graph.value_info, *case.model.graph.output)
        }
        outputs = {t for t in case.coupling.producers.values() if t in case.coupling.lanes}
        for node in case.model.graph.node:
            copy = result.graph.node.add()
            copy.CopyFrom(node)
            if node.op_type in LAYERS and node.output[0] in outputs:
                tensor = node.output[0]
                copy.output[0] = f"bare::{tensor}"
                names = [f"bare::{tensor}", f"mask::{tensor}"]
                result.graph.node.append(helper.make_node("Mul", names, [tensor]))
                kind = kinds.get(tensor, TensorProto.FLOAT) or TensorProto.FLOAT
                value = helper.make_tensor_value_info(names[1], kind, None)
                result.graph.input.append(value)
        return result

    @staticmethod
    def masks(case: Case, removed: Mapping[str, Sequence[int]]) -> Feeds:
        """What to feed to the masks: zeros where the removed channels lie, ones elsewhere."""
        groups = {group.name: group for group in case.coupling.groups}
        gone = [groups[name].channels[i] for name, numbers in removed.items() for i in numbers]
        result: Feeds = {}
        for tensor in case.coupling.producers.values():
            lane = case.coupling.lanes.get(tensor)
            if lane is None:
                continue
            line = np.array([0.0 if c in gone else 1.0 for c in lane.classes.tolist()])
            rank = len(case.coupling.shapes[tensor])
            shape = [len(line) if axis == lane.axis else 1 for axis in range(rank)]
            result[f"mask::{tensor}"] = line.reshape(shape).astype(_dtype(case.model, tensor))
        return result

    @staticmethod
    def removals(case: Case, *, seed: int = 0, draws: int = 2) -> list[Removed]:
        """Removed sets that respect the covers.

        For every group by itself: a single channel, everything but one, and `draws` random subsets
        (one where there are many groups); for all groups together: everything but one, and `draws`
        random subsets.
        """
        generator = np.random.default_rng(seed)
        groups = case.coupling.groups
        apart = draws if len(groups) < 3 else 1
        found: list[Removed] = []
        for group in groups:
            sets = [[int(generator.integers(group.width))], _all_but_one(group, generator)]
            sets += [_some(group, generator) for _ in range(apart)]
            found += [{group.name: _spared(group, one, generator)} for one in sets]
        if len(groups) > 1:
            found.append(
                {g.name: _spared(g, _all_but_one(g, generator), generator) for g in groups}
            )
            for _ in range(draws):
                found.append({g.name: _spared(g, _some(g, generator), generator) for g in groups})
        for removed in found:
            _spare_jointly(case.coupling, removed, generator)
        unique: list[Removed] = []
        for removed in found:
            cut = {name: numbers for name, numbers in removed.items() if numbers}
            if cut and cut not in unique:
                unique.append(cut)
        return unique

    @staticmethod
    def assert_valid(
        case: Case, result: onnx.ModelProto, removed: Mapping[str, Sequence[int]]
    ) -> None:
        """The result is a valid model with the same interface and smaller weights."""
        onnx.checker.check_model(result, full_check=True)
        for field in ("input", "output"):
            mine = [v.SerializeToString() for v in getattr(case.model.graph, field)]
            theirs = [v.SerializeToString() for v in getattr(result.graph, field)]
            assert mine == theirs, f"{field}s changed"
        versions = [{i.domain: i.version for i in m.opset_import} for m in (case.model, result)]
        assert versions[0] == versions[1]
        assert case.model.ir_version == result.ir_version
        groups = {group.name: group for group in case.coupling.groups}
        gone = {groups[name].channels[i] for name, numbers in removed.items() for i in numbers}
        nodes = {node.name: node for node in result.graph.node}
        for layer, tensor in case.coupling.producers.items():
            lane = case.coupling.lanes.get(tensor)
            count = 0 if lane is None else sum(c in gone for c in lane.classes.tolist())
            had, has = _outputs(case.model, case.node(layer)), _outputs(result, nodes[layer])
            assert has == had - count, f"'{layer}' has {has} channels, not {had} - {count}"
        assert gone
        assert _unused(result) <= _unused(case.model), "whole weights are left behind"

    @staticmethod
    def assert_nothing_changes_nothing(case: Case) -> None:
        """Removing no channel leaves the bytes of all nodes and weights alone."""
        empty: Removed = {group.name: [] for group in case.coupling.groups}
        result = remove_channels(case.model, case.coupling, empty)
        for field in ("node", "initializer"):
            mine = [m.SerializeToString() for m in getattr(case.model.graph, field)]
            theirs = [m.SerializeToString() for m in getattr(result.graph, field)]
            assert sorted(mine) == sorted(theirs), f"{field}s changed"

    @staticmethod
    def whole_feeds(model: onnx.ModelProto, sizes: Sizes) -> Feeds:
        """Whole numbers from -3 to 3 for all inputs (0 and 1 for unsigned ones and booleans)."""
        generator = np.random.default_rng(7)
        constants = {tensor.name for tensor in model.graph.initializer}
        result: Feeds = {}
        for value in model.graph.input:
            if value.name in constants:
                continue
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
            low, high = (0, 2) if dtype.kind in "bu" else (-3, 4)
            numbers = generator.integers(low, high, tuple(sizes[value.name]))
            result[value.name] = numbers.astype(dtype)
        return result


def _spared(group: Group, removed: Sequence[int], generator: np.random.Generator) -> list[int]:
    """The removed set, less one random channel of every cover that it would take whole."""
    left = set(removed)
    for cover in group.covers:
        if set(cover) <= left:
            left.discard(int(generator.choice(cover)))
    return sorted(left)


def _spare_jointly(
    coupling: Coupling, removed: dict[str, list[int]], generator: np.random.Generator
) -> None:
    """The same for sets that belong to several groups."""
    for cover in coupling.joint_covers:
        if all(number in removed.get(name, []) for name, number in cover):
            name, number = cover[int(generator.integers(len(cover)))]
            removed[name].remove(number)


def _all_but_one(group: Group, generator: np.random.Generator) -> list[int]:
    kept = int(generator.integers(group.width))
    return [number for number in range(group.width) if number != kept]


def _some(group: Group, generator: np.random.Generator) -> list[int]:
    count = int(generator.integers(1, max(group.width, 2)))
    return sorted(generator.permutation(group.width)[:count].tolist())


def _run(session: ort.InferenceSession, feeds: Feeds) -> list[np.ndarray]:
    return list(session.run(None, feeds))


def _assert_close(
    found: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float, what: str
) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        if other.dtype.kind == "f":
            # NaN equals NaN in the comparison below, which would hide everything else.
            assert np.isfinite(other).all(), what
        if tolerance and other.size:
            scale = float(np.abs(other.astype(np.float64)).max())
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale, err_msg=what)
        else:
            np.testing.assert_array_equal(one, other, err_msg=what)


def _dtype(model: onnx.ModelProto, tensor: str) -> np.dtype[Any]:
    for value in (*model.graph.value_info, *model.graph.output):
        if value.name == tensor and value.type.tensor_type.elem_type:
            return np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    return np.dtype(np.float32)


def _outputs(model: onnx.ModelProto, node: onnx.NodeProto) -> int:
    """How many output channels a layer's weight has; looks through nodes in front of it."""
    name = node.input[1]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {output: maker for maker in model.graph.node for output in maker.output}
    while name not in weights:
        name = makers[name].input[0]
    dims = list(weights[name].dims)
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "ConvTranspose":
        return int(dims[1] * given.get("group", 1))
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not given.get("transB", 0)):
        return int(dims[-1])
    return int(dims[0])


def _unused(model: onnx.ModelProto) -> set[str]:
    """Initializers that no node of the main graph reads."""
    read = {name for node in model.graph.node for name in node.input}
    return {tensor.name for tensor in model.graph.initializer} - read


@pytest.fixture(scope="session")
def pruning(unoptimised: Any) -> Pruning:
    """The oracle: `pruning.check(model, ...)` couples, removes and compares."""
    return Pruning(unoptimised)
