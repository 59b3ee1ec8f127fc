"""Repair against least squares on the rows themselves, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.errors import UsageError
from onnxcompress.plan.channels.remove import left_of_lanes, remove_channels
from onnxcompress.rewrite import mending
from onnxcompress.rewrite.mended import Effort
from onnxcompress.rewrite.repair import Repair
from onnxcompress.runtime import Execution

Array = np.ndarray


def weights(model: onnx.ModelProto) -> dict[str, bytes]:
    return {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}


@pytest.mark.parametrize("method", ["refit", "scale"])
def test_nothing_changed_nothing_done(nets: Any, bench: Any, method: str) -> None:
    model = bench.chain(nets)
    found = bench.repaired(model, model, nets.samples(model, 20), method=method)
    assert found.mended == ()
    assert found.left == {}
    assert weights(found.model) == weights(model)


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.usefixtures("free")
def test_noise_on_a_weight_is_undone(nets: Any, bench: Any, kit: Any, *, equal: bool) -> None:
    model = bench.chain(nets, *((3, 3) if equal else (6, 4)))
    feeds = nets.samples(model, 150)
    weight = bench.constant(model, "two", 1)
    noise = np.random.default_rng(3).standard_normal(weight.shape) / 3
    result = bench.variant(model, w2=(weight + noise).astype(np.float32))
    found = bench.repaired(model, result, feeds)
    assert bench.relative(kit, model, result, feeds) > 0.1
    assert bench.relative(kit, model, found.model, feeds) <= 1e-3
    assert list(bench.by_node(found)) == ["two", "fc"]
    assert bench.by_node(found)["two"].method == "refit"
    np.testing.assert_allclose(bench.constant(found.model, "two", 1), weight, atol=2e-3)
    np.testing.assert_array_equal(
        bench.constant(found.model, "one", 1), bench.constant(model, "one", 1)
    )


def patches(values: Array) -> Array:
    """What 'two' reads, 2 x 2 with pads [0, 1, 1, 0], one number after the other."""
    padded = np.pad(values, [(0, 0), (0, 0), (0, 1), (1, 0)])
    height, width = padded.shape[2] - 1, padded.shape[3] - 1
    return np.array(
        [
            [v for c in range(values.shape[1]) for v in padded[n, c, i : i + 2, j : j + 2].ravel()]
            for n in range(len(values))
            for i in range(height)
            for j in range(width)
        ]
    )


def test_pruned_channels_are_made_up_for(nets: Any, bench: Any, kit: Any, tap: Any) -> None:
    """The first refitted layer is ridge regression on explicit patches, and so is the next."""
    model = bench.chain(nets)
    coupling = nets.facts(model).coupling()
    gone = {"one": (0, 3)}
    result = remove_channels(model, coupling, gone)
    kept = left_of_lanes(coupling, coupling.classes(gone))
    feeds = nets.samples(model, 120)
    found = bench.repaired(model, result, feeds, kept)
    done = bench.by_node(found)
    assert done["one"].method == "kept", "what is left of it answers what it did"
    assert done["two"].after < done["two"].before
    assert bench.relative(kit, model, found.model, feeds) < 0.8 * bench.relative(
        kit, model, result, feeds
    )
    fresh = nets.samples(model, 200, seed=77)
    assert bench.relative(kit, model, found.model, fresh) < 0.9 * bench.relative(
        kit, model, result, fresh
    )

    x, y = patches(tap(result, "b", feeds)), bench.rows(tap(model, "c", feeds))
    prior = bench.constant(result, "two", 1)
    flat = prior.reshape(len(prior), -1)
    matrix, bias = bench.ridge(x, y, flat, done["two"].shrinkage)
    new = bench.constant(found.model, "two", 1)
    # Patches of float32 activations of other batch sizes; weights are rounded to float32.
    np.testing.assert_allclose(new.reshape(flat.shape), matrix, atol=1e-5)
    np.testing.assert_allclose(bench.constant(found.model, "two", 2), bias, atol=1e-5)
    plain = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    best = np.square(y - np.c_[x, np.ones(len(x))] @ plain).sum()
    reached = np.square(y - x @ new.reshape(flat.shape).T - bench.constant(found.model, "two", 2))
    assert best <= reached.sum() * (1 + 1e-9)
    before = np.square(y - x @ flat.T).sum()
    assert reached.sum() - best < 0.15 * (before - best)

    matrix, bias = bench.ridge(
        tap(found.model, "f", feeds),
        tap(model, "y", feeds),
        bench.constant(result, "fc", 1),
        done["fc"].shrinkage,
    )
    np.testing.assert_allclose(bench.constant(found.model, "fc", 1), matrix, atol=1e-4)
    np.testing.assert_allclose(bench.constant(found.model, "fc", 2), bias, atol=1e-4)


def test_errors_along_the_skip_path_are_carried(nets: Any, bench: Any, kit: Any, tap: Any) -> None:
    model = nets.build(
        """net (float[N, 3, 4, 5] x) => (float[N, 2, 4, 5] y) {
        [stem] a = Conv (x, w0, b0) [r0] b = Relu (a)
        [p1] c = Conv (b, w1) [q1] d = Relu (c) [p2] e = Conv (d, w2)
        [sum] f = Add (e, b) [r1] g = Relu (f)
        [last] y = Conv (g, w3) }""",
        w0=(4, 3, 1, 1),
        b0=(4,),
        w1=(8, 4, 1, 1),
        w2=(4, 8, 1, 1),
        w3=(2, 4, 1, 1),
    )
    feeds = nets.samples(model, 100)
    coupling = nets.facts(model).coupling()
    gone = {"p1": (1, 5)}
    kept = left_of_lanes(coupling, coupling.classes(gone))
    pruned = remove_channels(model, coupling, gone)
    # The shortcut differs as well, by another bend that no layer in front can make up for.
    leaky = onnx.ModelProto()
    leaky.CopyFrom(pruned)
    node = next(n for n in leaky.graph.node if n.name == "r0")
    node.op_type = "LeakyRelu"
    node.attribute.append(onnx.helper.make_attribute("alpha", 0.3))
    found = bench.repaired(model, leaky, feeds, kept)
    done = bench.by_node(found)
    assert done["p2"].method == "refit"
    prior = bench.constant(leaky, "p2", 1)[:, :, 0, 0]
    x, now = (bench.rows(tap(found.model, name, feeds)) for name in ("d", "b"))
    target = bench.rows(tap(model, "f", feeds)) - now
    matrix, bias = bench.ridge(x, target, prior, done["p2"].shrinkage)
    np.testing.assert_allclose(bench.constant(found.model, "p2", 1)[:, :, 0, 0], matrix, atol=1e-5)
    np.testing.assert_allclose(bench.constant(found.model, "p2", 2), bias, atol=1e-5)
    own, _ = bench.ridge(x, bench.rows(tap(model, "e", feeds)), prior, done["p2"].shrinkage)
    assert np.abs(own - matrix).max() > 1e-2, "its own tensor would be another aim"


def test_the_same_seed_gives_the_same_bytes(nets: Any, bench: Any) -> None:
    model = bench.chain(nets)
    feeds = nets.samples(model, 60)
    noise = np.random.default_rng(3).standard_normal((6, 3, 3, 3)).astype(np.float32)
    result = bench.variant(model, w1=noise)
    one, again, other = (
        bench.repaired(
            model, result, feeds, seed=s, effort=Effort(rows=200)
        ).model.SerializeToString()
        for s in (1, 1, 2)
    )
    assert one == again
    assert one != other


def test_a_fixed_batch_equals_a_free_one(nets: Any, bench: Any) -> None:
    free, fixed = bench.chain(nets), bench.chain(nets, batch=64)
    feeds = nets.samples(free, 128)
    noise = np.random.default_rng(3).standard_normal((4, 6, 2, 2)).astype(np.float32)
    found = [bench.repaired(m, bench.variant(m, w2=noise), feeds).model for m in (free, fixed)]
    assert weights(found[0]) == weights(found[1])
    shapes = [
        [d.dim_param or d.dim_value for d in m.graph.input[0].type.tensor_type.shape.dim]
        for m in found
    ]
    assert [s[0] for s in shapes] == ["N", 64]


def test_what_can_be_exact_becomes_exact(nets: Any, bench: Any) -> None:
    model = bench.chain(nets)
    feeds = nets.samples(model, 150)
    weight = bench.constant(model, "two", 1)
    noise = np.random.default_rng(3).standard_normal(weight.shape) / 3
    found = bench.repaired(
        model, bench.variant(model, w2=(weight + noise).astype(np.float32)), feeds
    )
    one = bench.by_node(found)["two"]
    assert one.before > 0.1
    assert one.after <= 1e-9


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([0.50, 0.450, 0.401, 0.400], 2),  # within 2 % of what is left
        ([0.50, 0.450, 0.409, 0.400], 3),
        ([0.402, 0.4011, 0.4001, 0.400], 2),  # within a tenth of what is gained
        ([0.5, 0.1, 1e-6, 1e-12], 3),
        ([0.3, 0.31, 0.32, 0.33], 0),
    ],
)
def test_weights_stay_close_where_little_is_gained(errors: list[float], expected: int) -> None:
    assert mending._closest(errors, errors[0]) == expected


def test_unknown_methods_are_refused(nets: Any, bench: Any) -> None:
    with pytest.raises(UsageError, match="'guess' is neither refit nor scale"):
        Repair(bench.chain(nets), [], Execution(threads=1), method="guess")
