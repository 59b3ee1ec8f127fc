"""Moments of layers against sums over explicit patches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.moments import Moments
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate import moments as collecting
from onnxcompress.calibrate import sums as summing
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.calibrate.moments import CollectedMoments, drawn_feeds, positions_per_sample
from onnxcompress.calibrate.sums import Sums
from onnxcompress.calibrate.walk import Walk
from onnxcompress.errors import ModelError
from onnxcompress.runtime import Execution

Array = np.ndarray
FIELDS = ("gram", "mean", "cross", "answer", "energy")
NET = """net (float[{batch}, {s}, {h}, {w}] x) => (float[{batch}, 4] y) {{
    [one] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    [bend] b = Relu (a)
    [two] c = Conv (b, w2, b2)
    [pool] p = ReduceSum <keepdims = 0> (c, axes)
    [fc] y = Gemm <transB = 1, beta = 2.0> (p, w3, b3) }}"""


def network(nets: Any, kit: Any, *, batch: Any = "N", equal: bool = False) -> onnx.ModelProto:
    s, h, w, m = (4, 4, 4, 4) if equal else (2, 5, 6, 3)
    made: onnx.ModelProto = nets.build(
        NET.format(batch=batch, s=s, h=h, w=w),
        w1=kit.whole((m, s, 3, 3), seed=1, limit=1),
        b1=kit.whole((m,), seed=2),
        w2=kit.whole((4, m, 1, 1), seed=3),
        b2=kit.whole((4,), seed=4),
        w3=kit.whole((4, 4), seed=5, limit=1),
        b3=kit.whole((4,), seed=6),
        axes=np.array([2, 3]),
    )
    return made


def samples(model: onnx.ModelProto, kit: Any, count: int, seed: int = 7) -> dict[str, Array]:
    (spec,) = input_specs(model)
    return {"x": kit.whole((count, *spec.shape[1:]), seed=seed)}


def collector(
    nets: Any, model: onnx.ModelProto, arrays: dict[str, Array], **options: Any
) -> CollectedMoments:
    data = dataset_from_arrays(arrays, input_specs(model))
    shapes = nets.facts(model).shapes()
    return CollectedMoments(model, shapes, data, Execution(threads=1), **{"seed": 0, **options})


def rows_of(tap: Any, model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Any]:
    """(x, y) of every layer, one position after the other."""
    x, b = feeds["x"].astype(np.float64), tap(model, "b", feeds)
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    a, c = tap(model, "a", feeds), tap(model, "c", feeds)
    places = [
        (n, i, j) for n in range(len(x)) for i in range(a.shape[2]) for j in range(a.shape[3])
    ]
    one = np.array([padded[n, :, i : i + 3, j : j + 3].ravel() for n, i, j in places])
    return {
        "one": (one, np.array([a[n, :, i, j] for n, i, j in places])),
        "two": (
            np.array([b[n, :, i, j] for n, i, j in places]),
            np.array([c[n, :, i, j] for n, i, j in places]),
        ),
        "fc": (tap(model, "p", feeds), tap(model, "y", feeds)),
    }


def averaged(x: Array, y: Array) -> dict[str, Array]:
    """Averages of products, summed up row by row."""
    gram, cross = np.zeros((x.shape[1],) * 2), np.zeros((y.shape[1], x.shape[1]))
    for row, answer in zip(x, y, strict=True):
        gram += np.outer(row, row)
        cross += np.outer(answer, row)
    found = {"gram": gram, "mean": x.sum(0), "cross": cross, "answer": y.sum(0)}
    found["energy"] = np.square(y).sum(0)
    return {name: values / len(x) for name, values in found.items()}


def assert_moments(found: Moments, x: Array, y: Array) -> None:
    assert found.rows == len(x)
    for name, expected in averaged(x, y).items():
        values = getattr(found, name)
        assert values.dtype == np.float64
        # Whole numbers: only float64 sums and the division round.
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(values[0], expected, rtol=0, atol=1e-11 * scale, err_msg=name)


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("batch", ["N", 4])
def test_moments_are_averages_over_all_positions(
    nets: Any, kit: Any, tap: Any, batch: Any, *, equal: bool
) -> None:
    """With a fixed batch of 4, the last two of 10 samples make no whole batch."""
    model = network(nets, kit, batch=batch, equal=equal)
    arrays = samples(model, kit, 10)
    found = collector(nets, model, arrays)(["fc", "one", "two"])
    used = {"x": arrays["x"][:10] if batch == "N" else arrays["x"][:8]}
    if batch == "N":
        rows = rows_of(tap, model, used)
    else:
        parts = [rows_of(tap, model, {"x": used["x"][at : at + 4]}) for at in (0, 4)]
        rows = {
            name: tuple(np.concatenate([part[name][side] for part in parts]) for side in (0, 1))
            for name in parts[0]
        }
    assert set(found) == {"one", "two", "fc"}
    for name, (x, y) in rows.items():
        assert_moments(found[name], x, y)


def test_centred_moments_and_errors(nets: Any, kit: Any, tap: Any) -> None:
    model = network(nets, kit)
    arrays = samples(model, kit, 9)
    found = collector(nets, model, arrays)(["two"])["two"]
    x, y = rows_of(tap, model, arrays)["two"]
    centred = found.centred()
    np.testing.assert_allclose(centred.gram[0], np.cov(x.T, bias=True), rtol=1e-9, atol=1e-9)
    both = np.cov(np.concatenate([y, x], axis=1).T, bias=True)
    np.testing.assert_allclose(centred.cross[0], both[:4, 4:], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(centred.energy[0], y.var(axis=0), rtol=1e-9)
    np.testing.assert_array_equal(centred.mean, found.mean)
    np.testing.assert_array_equal(centred.answer, found.answer)
    assert found.variance == pytest.approx(float(y.var(axis=0).sum()), rel=1e-9)
    generator = np.random.default_rng(3)
    matrix, bias = generator.standard_normal((1, 4, 3)), generator.standard_normal((1, 4))
    direct = float(np.square(y - x @ matrix[0].T - bias[0]).sum() / len(x))
    assert found.error(matrix, bias) == pytest.approx(direct, rel=1e-10)


@pytest.mark.parametrize(("groups", "outputs", "features"), [(1, 4, 5), (3, 2, 5), (3, 3, 3)])
def test_sums_add_up(groups: int, outputs: int, features: int) -> None:
    generator = np.random.default_rng(4)

    def drawn(rows: int) -> tuple[Array, Array]:
        x = generator.standard_normal((rows, groups, features)).astype(np.float32)
        return x, generator.standard_normal((rows, groups, outputs)).astype(np.float32)

    parts = [drawn(rows) for rows in (7, 3, 1, 6)]
    one, other, third = (Sums("layer", groups, outputs, features) for _ in range(3))
    one.add(*parts[0])
    one.add(*parts[1])
    other.add(*parts[2])
    third.add(*parts[3])

    def assert_averages(found: Moments, used: list[tuple[Array, Array]]) -> None:
        x, y = (np.concatenate([p[side] for p in used]).astype(np.float64) for side in (0, 1))
        assert found.rows == len(x)
        for at in range(groups):
            for name, expected in averaged(x[:, at], y[:, at]).items():
                np.testing.assert_allclose(getattr(found, name)[at], expected, atol=1e-13)

    assert_averages(one.moments(other, third), parts)
    # What was asked for first changed nothing.
    assert_averages(one.moments(), parts[:2])
    assert_averages(other.moments(), parts[2:3])
    assert_averages(third.moments(one), [parts[3], *parts[:2]])
    nothing = Sums("layer", groups, outputs, features).moments()
    assert nothing.rows == 1
    assert not nothing.gram.any()


def test_sums_in_blocks_equal_sums_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).standard_normal((50, 1, 4)).astype(np.float32)
    y = x[:, :, :3] ** 2
    monkeypatch.setattr(summing, "_BLOCK_BYTES", 8 * 4 * 7)
    found = Sums("layer", 1, 3, 4)
    found.add(x, y)
    for name, expected in averaged(x[:, 0].astype(float), y[:, 0].astype(float)).items():
        np.testing.assert_allclose(getattr(found.moments(), name)[0], expected, atol=1e-13)


def test_large_matrices_are_mirrored_block_by_block() -> None:
    """More features than one block of the mirror has."""
    x = np.random.default_rng(1).standard_normal((6, 1, 1100)).astype(np.float32)
    sums = Sums("layer", 1, 1, 1100)
    sums.add(x, x[:, :, :1])
    wide = x[:, 0].astype(np.float64)
    np.testing.assert_allclose(sums.moments().gram[0], wide.T @ wide / 6, atol=1e-13)


def test_too_large_layers_are_refused(nets: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(nets, kit)
    given = collector(nets, model, samples(model, kit, 4))
    # 'one' reads 18 numbers: 8 * 18 * 4 * 18 bytes; 'two' reads 3.
    monkeypatch.setattr(summing, "LIMIT_BYTES", 8 * 18 * 4 * 18 - 1)
    with pytest.raises(ModelError, match=r"moments of 'one' \(18 inputs\).*prune.*or exclude it"):
        given(["one"])
    assert given(["two"])["two"].rows > 0
    monkeypatch.setattr(summing, "LIMIT_BYTES", 8 * 18 * (4 * 18))
    assert given(["one"])["one"].rows > 0


def test_unknown_layers_are_refused(nets: Any, kit: Any) -> None:
    model = network(nets, kit)
    given = collector(nets, model, samples(model, kit, 4))
    with pytest.raises(ModelError, match="'three' is not in the graph"):
        given(["one", "three"])
    with pytest.raises(ModelError, match="'bend'"):
        given(["bend"])


def test_positions_follow_from_the_seed(
    nets: Any, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(nets, kit)
    arrays = samples(model, kit, 12)
    monkeypatch.setattr(collecting, "positions_per_sample", lambda *_: 4)
    one, again, other = (collector(nets, model, arrays, seed=s)(["one"])["one"] for s in (3, 3, 4))
    assert one.rows == 48
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
    assert not np.array_equal(one.gram, other.gram)
    # A layer sees the same positions whether it is alone or not.
    (joint,) = [collector(nets, model, arrays, seed=3)(["one", "two", "fc"])["one"]]
    np.testing.assert_array_equal(one.gram, joint.gram)


def test_how_many_positions(nets: Any, kit: Any) -> None:
    model = network(nets, kit)
    facts = nets.facts(model)
    from onnxcompress.analyse.linear import linear_layer

    layer = linear_layer(facts.view.nodes["one"], facts.view)
    feeds = [samples(model, kit, 4), samples(model, kit, 3)]
    assert positions_per_sample(layer, feeds) == -(-(2**15) // 7)
    assert positions_per_sample(layer, feeds, 10) == 2
    wide = replace(layer, features=4096)
    assert positions_per_sample(wide, feeds) == -(-16 * 4096 // 7)


def test_drawn_feeds(nets: Any, kit: Any) -> None:
    model = network(nets, kit)
    arrays = samples(model, kit, 20)
    data, shapes = dataset_from_arrays(arrays, input_specs(model)), nets.facts(model).shapes()

    def drawn(seed: int) -> Array:
        return np.concatenate([f["x"] for f in drawn_feeds(model, shapes, data, seed, 6)])

    assert drawn(1).shape[0] == 6
    np.testing.assert_array_equal(drawn(1), drawn(1))
    assert not np.array_equal(drawn(1), drawn(2))
    of = [int(np.flatnonzero((arrays["x"] == row).all(axis=(1, 2, 3)))[0]) for row in drawn(1)]
    assert len(set(of)) == 6, "each once"
    assert of != sorted(of), "folders are sorted by class: the first batches are of all of them"


def test_a_variant_reads_its_own_inputs_and_answers_the_originals(
    nets: Any, kit: Any, tap: Any
) -> None:
    """E[y x'] with x of the variant and y of the original."""
    model = network(nets, kit)
    variant = onnx.ModelProto()
    variant.CopyFrom(model)
    for tensor in variant.graph.initializer:
        if tensor.name in {"w1", "w2"}:
            values = onnx.numpy_helper.to_array(tensor)
            other = kit.whole(values.shape, seed=11, limit=1)
            tensor.CopyFrom(onnx.numpy_helper.from_array(other, tensor.name))
    arrays = samples(model, kit, 6)
    found = collector(nets, model, arrays)(["two", "fc"], variant)
    now, was = rows_of(tap, variant, arrays), rows_of(tap, model, arrays)
    for name in ("two", "fc"):
        assert not np.array_equal(now[name][0], was[name][0])
        assert_moments(found[name], now[name][0], was[name][1])


def test_moments_are_kept_on_disk(
    nets: Any, kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(nets, kit)
    arrays = samples(model, kit, 5)
    layers = ["one", "two", "fc"]
    plain = collector(nets, model, arrays)(layers)
    first = collector(nets, model, arrays, cache=tmp_path)(layers)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == 3

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was run again")

    with monkeypatch.context() as patch:
        patch.setattr(Walk, "batches", refuse)
        second = collector(nets, model, arrays, cache=tmp_path)(layers)
        other = network(nets, kit)
        tensor = next(t for t in other.graph.initializer if t.name == "w2")
        tensor.CopyFrom(onnx.numpy_helper.from_array(kit.whole((4, 3, 1, 1), seed=77), "w2"))
        moved = samples(model, kit, 5, seed=8)
        for changed in (
            collector(nets, other, arrays, cache=tmp_path),
            collector(nets, model, moved, cache=tmp_path),
            collector(nets, model, arrays, cache=tmp_path, seed=1),
            collector(nets, model, arrays, cache=tmp_path, samples=4),
        ):
            with pytest.raises(AssertionError, match="run again"):
                changed(layers)
    for name in layers:
        assert plain[name].rows == first[name].rows == second[name].rows
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(plain[name], field), getattr(first[name], field))
            np.testing.assert_array_equal(getattr(plain[name], field), getattr(second[name], field))
