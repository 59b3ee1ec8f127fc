"""Local functions are inlined, nested ones too."""

from __future__ import annotations

import onnx
import pytest

from onnxcompress.errors import ModelError
from onnxcompress.load.canonical import canonicalise

NESTED = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
main (float[2,3] x) => (float[2,3] y) {
    a = local.outer <gain = 3.0> (x)
    y = local.outer <gain = 2.0> (a)
}
<domain: "local", opset_import: ["" : 17]>
inner (p) => (q) { q = Abs(p) }
<domain: "local", opset_import: ["" : 17, "local" : 1]>
outer <gain: float> (p) => (q) {
    g = Constant <value_float: float = @gain> ()
    t = local.inner(p)
    r = Mul(t, g)
    q = Sub(r, p)
}
"""


def test_nested_functions_are_inlined(kit):
    model = onnx.parser.parse_model(NESTED)
    before = model.SerializeToString()
    canonical = canonicalise(model)
    assert "2 local functions inlined" in canonical.notes
    assert not canonical.model.functions
    assert kit.operators(canonical.model) == ["Abs", "Mul", "Sub"] * 2
    assert {node.domain for node in canonical.model.graph.node} == {""}
    kit.assert_same(model, canonical.model, {"x": kit.whole((2, 3), seed=1)})
    assert model.SerializeToString() == before


def test_inlined_nodes_have_unique_names(kit):
    result = canonicalise(onnx.parser.parse_model(NESTED)).model
    names = [node.name for node in result.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_a_function_that_calls_itself_is_refused():
    text = """
    <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    main (float[2,3] x) => (float[2,3] y) { y = local.round(x) }
    <domain: "local", opset_import: ["" : 17, "local" : 1]>
    round (p) => (q) { t = Abs(p)  q = local.round(t) }
    """
    with pytest.raises(ModelError):
        canonicalise(onnx.parser.parse_model(text))
