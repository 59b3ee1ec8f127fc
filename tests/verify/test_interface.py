"""What a caller sees of a model: what is called a difference, and what is not."""

from __future__ import annotations

import onnx

from onnxcompress.verify.interface import interface_differences

TEXT = """<ir_version: 8, opset_import: ["" : 17%s]>
    net (float[N, 3] x) => (float[N, 3] y) { y = %s (x) }"""
DOUBLED = """<opset_import: ["" : 17], domain: "here">
    Twice (x) => (y) { y = Add (x, x) }"""


def test_functions_of_its_own_ask_nothing_of_a_caller() -> None:
    plain = onnx.parser.parse_model(TEXT % ("", "Relu"))
    calling = TEXT % (', "here" : 1', "here.Twice")
    unknown = onnx.parser.parse_model(calling)
    known = onnx.parser.parse_model(calling + DOUBLED)
    assert interface_differences(plain, known) == []
    (difference,) = interface_differences(plain, unknown)
    assert "here" in difference


def test_inputs_outputs_and_types() -> None:
    plain = onnx.parser.parse_model(TEXT % ("", "Relu"))
    other = onnx.parser.parse_model((TEXT % ("", "Relu")).replace("float[N, 3] x", "float[M, 3] x"))
    assert interface_differences(plain, plain) == []
    assert interface_differences(plain, other) == ["type or shape of input 'x' changed"]
