"""What comes out: a valid model, as exact, as cheap and as little damaged as was promised."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import onnx

from onnxcompress.graph.cost import Cost, model_cost
from onnxcompress.graph.surgeon import FIRST_IR
from onnxcompress.graph.view import FLOATING_TYPES, GraphView
from onnxcompress.plan.contract import Pass
from onnxcompress.plan.options import collect
from onnxcompress.runtime import Execution, open_session
from onnxcompress.testing.checks_measuring import (
    Machine,
    combinations,
    demand,
    edited,
    octets,
    proposals,
    relative_error,
    representatives,
    rewritten,
    run,
    squared_norm,
    tolerance,
    words,
)
from onnxcompress.testing.zoo import Entry
from onnxcompress.verify.interface import interface_differences

_SLACK = 1.15
"""Measured over promised damage: what a finite sample of noise and its borders may account for."""
_VALUES, _MOST_RUNS = 100_000, 400


def check_result_is_valid(owner: Pass[Any], entry: Entry) -> None:
    """The result passes the full checker, loads and runs, and a caller sees no difference."""
    model = entry.canonical()
    expected = None
    for choice in combinations(proposals(owner, entry)):
        result = rewritten(owner, model, choice)
        what = " and ".join(words(candidate) for candidate in choice)
        onnx.checker.check_model(result, full_check=True)
        different = interface_differences(model, result)
        demand(not different, f"{what}: {'; '.join(different)}")
        least = FIRST_IR if result.functions else 0
        kept = _frame(result) == _frame(model, least)
        demand(kept, f"{what}: names, versions or doc strings changed")
        _demand_tidy(result, what)
        if entry.in_onnxruntime:
            # With every optimisation, as a user would load it.
            with open_session(result, Execution(threads=1, spinning=False)) as session:
                session.run(entry.feeds())
        expected = expected or run(entry, model, entry.feeds())
        for want, have in zip(expected, run(entry, result, entry.feeds()), strict=True):
            demand(have.shape == want.shape, f"{what}: output {have.shape}, was {want.shape}")
            demand(have.dtype == want.dtype, f"{what}: output {have.dtype}, was {want.dtype}")
            demand(np.isfinite(have.astype(np.float64)).all(), f"{what}: output not finite")


def check_loosest_setting_is_exact(owner: Pass[Any], entry: Entry) -> None:
    """With default options the first candidate is lossless; what promises no damage does none."""
    model = entry.canonical()
    options = proposals(owner, entry)
    if owner == type(owner)():
        for offers in options.sites:
            damage = offers[0].damage
            demand(damage == 0, f"{words(offers[0])}: comes first with a damage of {damage}")
    exact = [[c for c in offers if c.damage == 0] for offers in options.sites]
    if not any(exact):
        return
    expected = run(entry, model, entry.feeds())
    for choice in ([c[0] for c in exact if c], [c[-1] for c in exact if c]):
        result = rewritten(owner, model, choice)
        error = relative_error(expected, run(entry, result, entry.feeds()))
        what = " and ".join(words(candidate) for candidate in choice)
        demand(error <= tolerance(result), f"{what}: promised exact, off by {error:.2g}")


def check_damage_is_honest(owner: Pass[Any], entry: Entry) -> None:
    """On a lone layer fed with white noise the squared error is no more than was promised.

    The error is relative to the layer's response without its bias, y(x) - y(0).
    """
    offers = [candidate for site in proposals(owner, entry).sites for candidate in site]
    if not offers:
        return
    model = entry.canonical()
    count = min(_MOST_RUNS, ceil(_VALUES / max(1, _output_size(entry, model))))
    feeds = [entry.feeds(seed=seed) for seed in range(count)]
    silence = {name: np.zeros_like(value) for name, value in feeds[0].items()}
    *expected, rest = Machine(entry, model).run(*feeds, silence)
    scale = sum(_squared_distance(y[0], rest[0]) for y in expected)
    for candidate in offers:
        result = rewritten(owner, model, [candidate])
        found = Machine(entry, result).run(*feeds)
        error = sum(_squared_distance(y[0], z[0]) for y, z in zip(expected, found, strict=True))
        measured = error / scale
        demand(
            measured <= _SLACK * candidate.damage + tolerance(result) ** 2,
            f"{words(candidate)}: promised a damage of {candidate.damage:.3g}, did {measured:.3g}",
        )


def check_cost_is_counted(owner: Pass[Any], entry: Entry) -> None:
    """What a candidate says the layer costs, before and after, is what counting finds."""
    facts = entry.facts()
    total = facts.total()
    for offers in proposals(owner, entry).sites:
        for candidate in offers:
            result = rewritten(owner, facts.model, [candidate])
            after = model_cost(result, entry.facts(result).shapes())
            what = words(candidate)
            if entry.lone:
                _demand_equal(candidate.before, total, f"{what}: before")
                _demand_equal(candidate.after, after, f"{what}: after")
            _demand_equal(candidate.saving, total - after, f"{what}: saving")


def check_dtypes_are_kept(owner: Pass[Any], entry: Entry) -> None:
    """New weights have the type of the weights they replace."""
    model = entry.canonical()
    view = GraphView(model)
    for offers in proposals(owner, entry).sites:
        for candidate in representatives(offers):
            read = {name for touched in candidate.touches for name in view.nodes[touched].input}
            allowed = {t.data_type for t in map(view.initializers.get, read) if t is not None}
            for tensor in edited(owner, model, candidate).graph.initializer:
                if tensor.name not in view.initializers and tensor.data_type in FLOATING_TYPES:
                    kind = onnx.TensorProto.DataType.Name(tensor.data_type)
                    demand(
                        tensor.data_type in allowed,
                        f"{words(candidate)}: the new constant '{tensor.name}' is {kind}",
                    )


def check_dynamic_batch(owner: Pass[Any], entry: Entry) -> None:
    """The result runs at other batches than the representative one, sample by sample the same."""
    for choice in combinations(proposals(owner, entry)):
        result = rewritten(owner, entry.canonical(), choice)
        what = " and ".join(words(candidate) for candidate in choice)
        three = entry.feeds(batch=3)
        one = {name: values[:1] for name, values in three.items()}
        alone, together = Machine(entry, result).run(one, three)
        error = relative_error(alone, [y[:1] for y in together])
        demand(error <= tolerance(result), f"{what}: a sample alone differs by {error:.2g}")
        sizes = [len(y) for y in together]
        demand(set(sizes) == {3}, f"{what}: a batch of 3 comes out as {sizes}")


def check_rank_deficient_weights(owner: Pass[Any], entry: Entry) -> None:
    """A weight of rank one is refused, or rewritten as exactly as promised."""
    model = entry.canonical()
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1 and tensor.data_type in FLOATING_TYPES:
            values = np.array(onnx.numpy_helper.to_array(tensor)).astype(np.float64)
            # One channel of the first axis, repeated: rank one in every unfolding along it.
            values[:] = values[:1, :1]
            values = values.astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    options = collect(entry.facts(model), [owner])
    for offers in options.sites:
        expected = run(entry, model, entry.feeds())
        for candidate in representatives(offers):
            damage, what = candidate.damage, words(candidate)
            demand(np.isfinite(damage) and damage >= 0, f"{what}: promises a damage of {damage}")
            result = rewritten(owner, model, [candidate])
            error = relative_error(expected, run(entry, result, entry.feeds()))
            demand(
                error**2 <= _SLACK * damage + tolerance(result) ** 2,
                f"{what}: promised a damage of {damage:.3g} at rank one, did {error**2:.3g}",
            )


def _demand_tidy(model: onnx.ModelProto, what: str) -> None:
    """No dead node or constant, no name twice, and types and shapes that are inferred afresh."""
    view = GraphView(model)
    read = {n for node in model.graph.node for n in node.input} | view.captured | set(view.outputs)
    unread = [name for name in view.initializers if name not in read]
    demand(not unread, f"{what}: nobody reads the constants {unread}")
    dead = [n.name for n in model.graph.node if not read.intersection(n.output)]
    demand(not dead, f"{what}: nobody reads the nodes {dead}")
    demand(len(view.nodes) == len(model.graph.node), f"{what}: two nodes have one name")
    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    del fresh.graph.value_info[:]
    fresh = onnx.shape_inference.infer_shapes(fresh, strict_mode=True, data_prop=True)
    stale = _infos(model) ^ _infos(fresh)
    demand(not stale, f"{what}: value_info is stale for {sorted({name for name, _ in stale})}")


def _infos(model: onnx.ModelProto) -> set[tuple[str, bytes]]:
    return {(value.name, octets(value.type)) for value in model.graph.value_info}


def _frame(model: onnx.ModelProto, least: int = 0) -> tuple[Any, ...]:
    """What else a caller may read of a model: producer, versions, names, doc strings.

    Args:
        model: the model.
        least: IR version that it is read with, at least: functions are there since version 8.
    """
    fields = [f.name for f, value in model.ListFields() if isinstance(value, (int, str))]
    return (
        {name: getattr(model, name) for name in fields}
        | {"ir_version": max(model.ir_version, least)},
        model.graph.name,
        model.graph.doc_string,
        [octets(entry) for entry in model.graph.metadata_props],
    )


def _output_size(entry: Entry, model: onnx.ModelProto) -> int:
    return int(sum(y.size for y in run(entry, model, entry.feeds())))


def _squared_distance(one: Any, other: Any) -> float:
    return squared_norm(np.asarray(one, np.float64) - np.asarray(other, np.float64))


def _demand_equal(promised: Cost, counted: Cost, what: str) -> None:
    demand(promised == counted, f"{what} promises {promised}, counted {counted}")
