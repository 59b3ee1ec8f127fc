"""Kernels that share a dictionary: exact when there is one entry each, folded by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
import onnxruntime
import onnxslim
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.graph.view import GraphView
from onnxcompress.kernels.emission import DOMAIN, SHARED_KERNELS
from onnxcompress.plan.contract import Candidate, Refusal
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.rewrite.precision import Conversion
from onnxcompress.runtime import Execution, open_session
from onnxcompress_passes.dsl.dsl import Dsl

See = Callable[[onnx.ModelProto], Facts]


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    with open_session(model, Execution(threads=1)) as session:
        return np.asarray(session.run({session.input_names[0]: x})[0])


def rewritten(model: onnx.ModelProto, seen: See, **options: Any) -> onnx.ModelProto:
    owner = Dsl(shared="kernels", **options)
    facts = seen(model)
    sites = [s for s in owner.sites(facts) if not isinstance(s, Refusal)]
    # Without a job's memo a rewrite has no data: by weights.
    chosen = [_by_weights(owner.candidates(site, facts)[0]) for site in sites]
    return rewrite(model, chosen, {"dsl": owner}, strict=True).model


def _by_weights(candidate: Candidate[Any]) -> Candidate[Any]:
    from dataclasses import replace

    return replace(candidate, setting=replace(candidate.setting, metric="weights"))


SPECS: list[dict[str, Any]] = [{"count": "4"}, {"source": "predefined", "price": 0.3}]


def inputs() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 3, 6, 7)).astype(np.float32)


def test_an_entry_per_kernel_changes_no_bit(pruning: Any, seen: See) -> None:
    model = pruning.graph("residual")
    result = rewritten(model, seen)
    assert [n.op_type for n in result.graph.node].count(SHARED_KERNELS) == 1
    np.testing.assert_array_equal(run(result, inputs()), run(model, inputs()))


@pytest.mark.parametrize(
    "tool",
    [
        onnx.inliner.inline_local_functions,
        onnxslim.slim,
        lambda model: gs.export_onnx(gs.import_onnx(model)),
    ],
    ids=["inliner", "onnxslim", "graphsurgeon"],
)
@pytest.mark.parametrize("spec", SPECS, ids=["dictionary", "programs"])
def test_other_tools_leave_what_it_computes(
    pruning: Any,
    seen: See,
    tool: Callable[[onnx.ModelProto], onnx.ModelProto],
    spec: dict[str, Any],
) -> None:
    result = rewritten(pruning.graph("residual"), seen, **spec)
    onnx.checker.check_model(result, full_check=True)
    expected = run(result, inputs())
    copy = onnx.ModelProto()
    copy.CopyFrom(result)
    np.testing.assert_array_equal(run(tool(copy), inputs()), expected)


def optimised(model: onnx.ModelProto, path: Path) -> list[tuple[str, str]]:
    """The operators that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = onnx.load(options.optimized_model_filepath)
    return [(node.domain, node.op_type) for node in found.graph.node]


@pytest.mark.parametrize("spec", SPECS, ids=["dictionary", "programs"])
@pytest.mark.parametrize("precision", [None, "fp16"])
def test_onnxruntime_is_left_with_the_layer_alone(
    pruning: Any, seen: See, tmp_path: Path, precision: str | None, spec: dict[str, Any]
) -> None:
    """It runs the operators of the original: nothing is computed anew for every input."""
    model = pruning.graph("residual")
    result = rewritten(model, seen, **spec)
    assert result.functions
    if precision is not None:
        convert = Conversion(precision, seen(model), None)
        model, narrow = convert(model), convert(result)
        np.testing.assert_allclose(run(narrow, inputs()), run(result, inputs()), atol=0.02)
        result = narrow
    assert optimised(result, tmp_path) == optimised(model, tmp_path)


def test_programs_in_an_older_model(pruning: Any, seen: See, tmp_path: Path) -> None:
    """Below opset 16 ScatterND cannot add; what is written computes the same and folds as well."""
    model = pruning.graph("residual")
    older = onnx.ModelProto()
    older.CopyFrom(model)
    older.opset_import[0].version = 11
    older.ir_version = 6
    spec = {"source": "predefined", "price": 0.3}
    one, other = (rewritten(each, seen, **spec) for each in (model, older))
    np.testing.assert_array_equal(run(one, inputs()), run(other, inputs()))
    assert other.functions
    assert other.ir_version == 8
    assert optimised(other, tmp_path) == optimised(model, tmp_path)


def test_no_programs_in_a_model_too_old(pruning: Any, seen: See) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(pruning.graph("residual"))
    model.opset_import[0].version = 10
    found = list(Dsl(shared="kernels", source="predefined").sites(seen(model)))
    reasons = [f.reason for f in found if isinstance(f, Refusal)]
    assert any("opset 10: programs are written with operators of opset 11" in r for r in reasons)


def test_weights_are_entries_times_scales(pruning: Any, seen: See) -> None:
    result = rewritten(pruning.graph("residual"), seen, count="4")
    view = GraphView(result)
    (call,) = [node for node in result.graph.node if node.domain == DOMAIN]
    entries, index, scale, shape = (view.array(name) for name in call.input)
    assert (entries.shape, index.dtype, shape.tolist()) == ((4, 9), np.uint8, [10, 12, 3, 3])
    weight = (entries[index] * scale).reshape(shape)
    tapped = onnx.ModelProto()
    tapped.CopyFrom(result)
    tapped.graph.output.append(onnx.ValueInfoProto(name=call.output[0]))
    with open_session(tapped, Execution(threads=1)) as session:
        made = session.run({session.input_names[0]: inputs()})[-1]
    np.testing.assert_array_equal(made, weight)


def test_layers_without_kernels_are_refused_with_a_reason(pruning: Any, seen: See) -> None:
    found = list(Dsl(shared="kernels").sites(seen(pruning.graph("depthwise"))))
    reasons = {f.node: f.reason for f in found if isinstance(f, Refusal)}
    assert "1x1" in reasons["one"]
    assert "grouped" in reasons["dw"]


def test_smaller_dictionaries_cost_less_and_err_more(pruning: Any, seen: See) -> None:
    facts = seen(pruning.graph("residual"))
    owner = Dsl(shared="kernels")
    (site,) = [s for s in owner.sites(facts) if not isinstance(s, Refusal)]
    ladder = owner.candidates(site, facts)
    assert [c.setting.entries for c in ladder] == [120, 32, 16, 8, 4]
    assert [c.damage for c in ladder] == sorted(c.damage for c in ladder)
    octets = [c.after.weight_bytes for c in ladder]
    assert octets == sorted(octets, reverse=True)
    assert all(c.stored for c in ladder)


def test_both_sources_offer_what_errs_least_for_its_bytes(pruning: Any, seen: See) -> None:
    facts = seen(pruning.graph("residual"))
    offers = {}
    for source in ("learned", "predefined", "both"):
        owner = Dsl(shared="kernels", source=source)
        (site,) = [s for s in owner.sites(facts) if not isinstance(s, Refusal)]
        offers[source] = list(owner.candidates(site, facts))
    both = offers["both"]
    assert len(both) > 3
    assert [c.damage for c in both] == sorted(c.damage for c in both)
    assert both[0].damage == 0.0
    for other in (*offers["learned"], *offers["predefined"]):
        assert any(
            c.damage <= other.damage
            and min(
                c.after.weight_bytes - other.after.weight_bytes,
                c.after.params - other.after.params,
            )
            <= 0
            for c in both
        )
