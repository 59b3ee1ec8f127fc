"""Filters that channels share: clusters, exactness of merging, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.embedded import embedded
from onnxcompress.errors import UsageError
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.infer import with_value_info
from onnxcompress.graph.view import GraphView
from onnxcompress.load.canonical import canonicalise
from onnxcompress.plan.contract import Candidate, Refusal, Site
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.runtime import Execution, open_session
from onnxcompress_passes.dsl.clusters import Clusters
from onnxcompress_passes.dsl.dsl import Dsl

See = Callable[[onnx.ModelProto], Facts]


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    with open_session(model, Execution(threads=1)) as session:
        return np.asarray(session.run({session.input_names[0]: x})[0])


def offers(owner: Dsl, facts: Facts) -> list[list[Candidate[Any]]]:
    sites = [s for s in owner.sites(facts) if not isinstance(s, Refusal)]
    return [list(owner.candidates(site, facts)) for site in sites]


def inputs(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 3, 6, 7)).astype(np.float32)


@pytest.mark.parametrize("net", ["chain", "residual", "residual, equal", "depthwise"])
@pytest.mark.parametrize("distance", ["answers", "ssim"])
def test_merged_network_computes_what_shared_filters_compute(
    pruning: Any, seen: See, net: str, distance: str
) -> None:
    """Gather-free merging against the original with equal filters, every group at once."""
    model = pruning.graph(net)
    owner = Dsl(distance=distance, count="5")
    chosen = [group[0] for group in offers(owner, seen(model))]
    assert chosen
    merged = rewrite(model, chosen, {"dsl": owner}, strict=True).model
    editor = Editor(model)
    assert owner.reference(chosen, editor)
    shared = with_value_info(editor.finish())
    x = inputs()
    want, have = run(shared, x), run(merged, x)
    assert np.abs(want - have).max() <= 2e-6 * np.abs(want).max()
    # And that is not the original.
    assert np.abs(want - run(model, x)).max() > 1e-3 * np.abs(want).max()


def test_counts_are_those_of_the_clusters(pruning: Any, seen: See) -> None:
    model = pruning.chain(one=12, two=20)
    owner = Dsl(count="5+8")
    chosen = [group[0] for group in offers(owner, seen(model))]
    result = rewrite(model, chosen, {"dsl": owner}, strict=True).model
    view = GraphView(result)
    shapes = [view.array(view.nodes[n].input[1]).shape for n in ("one", "two", "fc")]
    assert shapes == [(5, 3, 3, 3), (8, 5, 1, 1), (5, 8)]


def test_equal_filters_are_merged_for_nothing(pruning: Any, seen: See) -> None:
    """Channels that are copies of each other join first, and without damage."""
    model = pruning.chain(one=12)
    view = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in ("w1", "b1"):
        values = onnx.numpy_helper.to_array(view[name]).copy()
        values[6:] = values[:6]
        view[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    owner = Dsl(count="6+99")
    ((candidate,),) = [group for group in offers_or_none(owner, seen(model)) if group]
    assert candidate.damage == pytest.approx(0.0, abs=1e-12)
    assert candidate.setting.labels == (0, 1, 2, 3, 4, 5) * 2
    result = rewrite(model, [candidate], {"dsl": owner}, strict=True).model
    x = inputs(1)
    np.testing.assert_allclose(run(result, x), run(model, x), rtol=0, atol=2e-6)


def offers_or_none(owner: Dsl, facts: Facts) -> list[list[Candidate[Any]]]:
    from onnxcompress.plan.contract import NoCandidate

    found: list[list[Candidate[Any]]] = []
    for site in owner.sites(facts):
        if isinstance(site, Refusal):
            continue
        try:
            found.append(list(owner.candidates(site, facts)))
        except NoCandidate:
            found.append([])
    return found


def test_a_channel_by_itself_is_the_first_offer(pruning: Any, seen: See) -> None:
    for group in offers(Dsl(), seen(pruning.graph("residual"))):
        first = group[0].setting.clusters
        assert first.count == len(first.labels)
        assert not first.gone
        assert [c.damage for c in group] == sorted(c.damage for c in group)


def test_constants_that_tell_channels_apart_are_respected(pruning: Any, seen: See) -> None:
    found = list(Dsl().sites(seen(pruning.graph("matmul"))))
    reasons = {f.node: f.reason for f in found if isinstance(f, Refusal)}
    assert "tells its channels apart" in reasons["one"]


def test_planted_fault_in_merging_is_seen(
    pruning: Any, seen: See, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that are not added up: the comparison above must not hold."""
    import onnxcompress_passes.dsl.groups as module

    monkeypatch.setattr(module, "merge", lambda *_: None)
    model = pruning.graph("chain")
    owner = Dsl(count="5")
    chosen = [group[0] for group in offers(owner, seen(model))]
    merged = rewrite(model, chosen, {"dsl": owner}, strict=True).model
    editor = Editor(model)
    owner.reference(chosen, editor)
    x = inputs()
    want, have = run(with_value_info(editor.finish()), x), run(merged, x)
    assert np.abs(want - have).max() > 1e-2 * np.abs(want).max()


def test_clusters() -> None:
    found = Clusters((0, 1, 0, 0), (0.2, 1.0, 0.5, 0.3))
    assert (found.count, found.leaders, found.gone, found.into) == (2, (2, 1), (0, 3), (2, 2))
    centres = found.centres(np.array([[1.0], [7.0], [2.0], [3.0]]))
    np.testing.assert_allclose(centres[:, 0], [2.1, 7.0, 2.1, 2.1])


@pytest.mark.parametrize(
    "options",
    [
        {"shared": "layers"},
        {"distance": "l2"},
        {"linkage": "ward"},
        {"centre": "median"},
        {"count": "a"},
        {"count": "4+0"},
        {"threshold": -1.0},
        {"threshold": 0.1, "count": "4"},
        {"threshold": 0.1, "shared": "kernels"},
        {"round_to": -1},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Dsl(**options)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"labels": [0, 2], "shares": [1, 1]},
        {"labels": [0, 0], "shares": [0.5, 0.4]},
        {"labels": [0], "shares": []},
        {"labels": [0], "shares": [1.0], "entries": 4},
        {"entries": 4, "metric": "l2"},
        {"entries": 0},
        {"entries": 4, "more": 1},
    ],
)
def test_settings_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Dsl().load_setting(values)


def test_counts_of_the_poster(seen: See) -> None:
    """Five, six and eight filters for the layers of `vgg_tiny`: 4,077 weights; merged, 747."""
    model = canonicalise(onnx.load(embedded("vgg_tiny.onnx"))).model
    owner, facts = Dsl(count="5+6+8", distance="ssim"), seen(model)
    sites = [s for s in owner.sites(facts) if isinstance(s, Site) and s.node.startswith("conv")]
    chosen = [owner.candidates(site, facts)[0] for site in sites]
    editor = Editor(model)
    assert owner.reference(chosen, editor)
    shared = kernels(editor.finish())
    assert [len(np.unique(w, axis=0)) for w in shared] == [5, 6, 8]
    assert sum(np.unique(w, axis=0).size for w in shared) == 4_077
    merged = rewrite(model, chosen, {"dsl": owner}, strict=True).model
    assert sum(w.size for w in kernels(merged)) == 747
    floats = [t for t in merged.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert sum(int(np.prod(t.dims)) for t in floats) == 126_088


def kernels(model: onnx.ModelProto) -> list[np.ndarray]:
    """Weights of the convolutions, in order."""
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    return [held[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]
