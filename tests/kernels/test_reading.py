"""What the file says about kernels, against the weights that ONNX Runtime makes of it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from onnxcompress.kernels.compressibility import ERRORS, compressibility
from onnxcompress.kernels.dictionary import learn
from onnxcompress.kernels.emission import (
    DOMAIN,
    SHARED_KERNELS,
    kind_of,
    operands,
    program_calls,
    shared_kernels,
)
from onnxcompress.kernels.induction import LayerPrograms, induce
from onnxcompress.kernels.reading import written_layers
from onnxcompress.kernels.search import vocabulary
from onnxcompress.kernels.semantics import evaluate
from onnxcompress.runtime import Execution, open_session


def layer(seed: int = 0, size: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((6, 4, size * size))


def conv_of(
    nodes: list[onnx.NodeProto],
    functions: list[onnx.FunctionProto],
    opset: int = 17,
    **constants: object,
) -> onnx.ModelProto:
    nodes = [*nodes, onnx.helper.make_node("Conv", ["x", "w"], ["y"], "conv")]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [value("x", 1, ["N", 4, 8, 8])],
        [value("y", 1, ["N", 6, None, None]), value("w", 1, [6, 4, None, None])],
        [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(DOMAIN, 1)]
    unique = {function.name: function for function in functions}
    return onnx.helper.make_model(
        graph, opset_imports=opsets, functions=list(unique.values()), ir_version=8
    )


def written(programs: LayerPrograms, size: int, opset: int = 17) -> onnx.ModelProto:
    zero = onnx.numpy_helper.from_array(np.zeros(1, np.float32))
    nodes = [onnx.helper.make_node("ConstantOfShape", ["extent"], ["bank"], value=zero)]
    constants: dict[str, object] = {"extent": np.array([6, 4, size * size])}
    last, functions = "bank", []
    for number, call in enumerate(program_calls(programs, np.dtype(np.float32), opset)):
        names = [f"c{number}_{operand}" for operand in call.function.input[1:]]
        constants |= {
            name: call.operands[operand]
            for name, operand in zip(names, call.function.input[1:], strict=True)
        }
        nodes.append(
            onnx.helper.make_node(
                call.function.name, [last, *names], [f"bank{number}"], domain=DOMAIN
            )
        )
        last = f"bank{number}"
        functions.append(call.function)
    nodes.append(onnx.helper.make_node("Reshape", [last, "shape"], ["w"]))
    return conv_of(nodes, functions, opset, **constants, shape=np.array([6, 4, size, size]))


def made(model: onnx.ModelProto) -> np.ndarray:
    with open_session(model, Execution(threads=1)) as session:
        return np.asarray(session.run({"x": np.zeros((1, 4, 8, 8), np.float32)})[1])


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("price", [1e-6, 1e-5, 1e-4])
@pytest.mark.parametrize("opset", [11, 15, 17])
def test_programs_are_what_onnxruntime_makes(size: int, price: float, opset: int) -> None:
    weight = layer(size=size)
    programs = induce(weight, vocabulary(size, 2), price)
    model = written(programs, size, opset)
    onnx.checker.check_model(model, full_check=True)
    weights = made(model)
    expected = programs.weights.reshape(6, 4, size, size)
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-6)
    (found,) = written_layers(model)
    for kernel, program in zip(weights.reshape(-1, size, size), found.programs, strict=True):
        np.testing.assert_allclose(evaluate(program, size), kernel, rtol=0, atol=1e-6)


def test_dictionary_reads_back() -> None:
    found = learn(layer(1), 5)
    values = operands(found, (6, 4, 3, 3), np.dtype(np.float32))
    call = onnx.helper.make_node(
        SHARED_KERNELS, ["entries", "index", "scale", "shape"], ["w"], domain=DOMAIN
    )
    model = conv_of([call], [shared_kernels(17, np.dtype(np.float32))], **values)
    (read,) = written_layers(model)
    kernels = [evaluate(program, 3, read.entries) for program in read.programs]
    np.testing.assert_allclose(np.stack(kernels), made(model).reshape(-1, 3, 3), atol=1e-6)


def test_models_without_programs_have_none() -> None:
    weight = layer(2).reshape(6, 4, 3, 3).astype(np.float32)
    node = onnx.helper.make_node("Identity", ["v"], ["w"])
    assert list(written_layers(conv_of([node], [], v=weight))) == []
    assert kind_of("SharedKernels") == kind_of("Conv") == ""


def test_round_trip_through_graphsurgeon_reads_the_same() -> None:
    model = written(induce(layer(3), vocabulary(3, 2), 1e-5), 3)
    again = gs.export_onnx(gs.import_onnx(model))
    (one,), (other,) = written_layers(model), written_layers(again)
    assert one.programs == other.programs


def test_compressibility_tells_patterns_from_noise() -> None:
    noise = layer(4)
    lines = np.random.default_rng(5).standard_normal((6, 4, 3))
    edges = np.tile(lines, (1, 1, 3)) + 1e-3 * noise
    words = vocabulary(3, 2)
    patterned, random = compressibility(edges, words), compressibility(noise, words)
    for error in ERRORS:
        assert patterned.at(error) < 0.5 * random.at(error)
    assert max(patterned.shares, key=patterned.shares.__getitem__).startswith("edge-vertical")
    assert list(random.lengths) == sorted(random.lengths, reverse=True)
