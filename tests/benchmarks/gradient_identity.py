"""Emitted gradients against differences in float64, on every network of the shared folder.

    python tests/benchmarks/gradient_identity.py [--taps 3] [--only NAME] [--folder DIR]

For a few taps (layers' outputs) of every network: the slope of the loss along the gradient in the
tap's gates, as onnx's reference evaluator finds it in float64 by central differences, relative to
the gradient's norm. Beside it, what a run with the backward graph costs in ONNX Runtime on the
CPU, relative to the network alone: medians of alternating runs, for gradients in all taps at once.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image, ImageDraw, ImageFont

from onnxcompress.analyse.facts import analyse
from onnxcompress.analyse.sizes import input_specs, random_feeds, representative_sizes
from onnxcompress.errors import DataError, OnnxCompressError
from onnxcompress.gradients.build import GradientModel, gradient_model
from onnxcompress.load.canonical import canonicalise
from onnxcompress.load.source import read_source
from onnxcompress.runtime import Execution, open_session

Array = NDArray[Any]
# Kinks and bends make long steps wrong, rounding short ones: the better of the two counts.
STEPS = (1e-6, 1e-8)
REPEATS = 7
# Where sizes are dynamic: small, so that the reference evaluator comes to an end.
SIZES = {
    "text_detection_ch_ppocrv3": (1, 3, 64, 160),
    "deeplabv3_mnv2_pascal_dq": (1, 3, 129, 129),
    "yolox_nano_coco": (1, 3, 160, 160),
}


def doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in float64."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type in {TensorProto.FLOAT, TensorProto.FLOAT16}:
            wide = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for node in copy.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in {TensorProto.FLOAT, TensorProto.FLOAT16}:
                attribute.i = TensorProto.DOUBLE
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del copy.graph.value_info[:]
    return copy


def gated(
    model: onnx.ModelProto, built: GradientModel, shapes: Mapping[str, list[int]]
) -> onnx.ModelProto:
    """The network with gates behind its taps, made by hand."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for tap, gate in built.gates.items():
        graph.input.append(helper.make_tensor_value_info(gate, TensorProto.FLOAT, shapes[gate]))
        at = next(i for i, node in enumerate(graph.node) if tap in node.output)
        for reader in graph.node:
            reader.input[:] = [f"gated:{tap}" if name == tap else name for name in reader.input]
        graph.node.insert(at + 1, helper.make_node("Mul", [tap, gate], [f"gated:{tap}"]))
    return copy


def loss_of(
    model: onnx.ModelProto,
    built: GradientModel,
    feeds: Mapping[str, Array],
    shapes: Mapping[str, list[int]],
) -> Callable[[str, Array], float]:
    """The loss in float64 as a function of one gate."""
    made = gated(model, built, shapes)
    if any(node.op_type == "DequantizeLinear" for node in made.graph.node):
        # The evaluator has none of an older opset.
        made = onnx.version_converter.convert_version(made, 21)
    evaluator = ReferenceEvaluator(doubled(made))
    wide = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in feeds.items()}
    fed = [spec.name for spec in input_specs(model)] + list(built.gates.values())
    outputs = [output.name for output in model.graph.output]

    def loss(gate: str, values: Array) -> float:
        given = {**wide, gate: values}
        run = evaluator.run(None, {name: given[name] for name in fed})
        found = dict(zip(outputs, run, strict=True))
        if not built.loss.target:
            pairs = built.loss.cotangents.items()
            return sum(float((found[name] * wide[v]).sum()) for name, v in pairs)
        target = wide[built.loss.target]
        scores = found[outputs[0]].reshape(target.shape)
        if scores.min() < 0 or not np.allclose(scores.sum(axis=1), 1, atol=1e-6):
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores = scores / scores.sum(axis=1, keepdims=True)
        return -float((target * np.log(scores)).sum())

    return loss


def feeds_of(built: GradientModel, shapes: Mapping[str, list[int]]) -> dict[str, Array]:
    """Gates at one, the second class as target, signs as cotangents."""
    result = {gate: np.ones(shapes[gate], np.float32) for gate in built.gates.values()}
    if built.loss.target:
        result[built.loss.target] = np.zeros(shapes[built.loss.target], np.float32)
        result[built.loss.target][:, 1] = 1
    generator = np.random.default_rng(0)
    for cotangent in built.loss.cotangents.values():
        result[cotangent] = generator.choice([-1.0, 1.0], shapes[cotangent]).astype(np.float32)
    return result


def _text(height: int, width: int) -> Array:
    """A word in black on white [1, 3, H, W], normalised."""
    image = Image.new("L", (width, height), "white")
    font = ImageFont.load_default(size=height / 2)
    ImageDraw.Draw(image).text((width / 12, height / 5), "onnx", fill="black", font=font)
    grey = np.asarray(image, dtype=np.float32) / 255
    return np.repeat(((grey - 0.45) / 0.225)[np.newaxis, np.newaxis], 3, axis=1)


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Shapes of the inputs."""
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}


def costs(
    model: onnx.ModelProto, built: onnx.ModelProto, feeds: Mapping[str, Array]
) -> tuple[float, float]:
    """Median seconds of the network alone and with its backward graph."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with open_session(model, Execution()) as one, open_session(built, Execution()) as other:
        given = [{k: feeds[k] for k in session.input_names} for session in (one, other)]
        for _ in range(REPEATS + 2):
            for session, values, taken in zip((one, other), given, seconds, strict=True):
                start = time.perf_counter()
                session.run(values)
                taken.append(time.perf_counter() - start)
    # The first two runs warm up.
    return median(seconds[0][2:]), median(seconds[1][2:])


def row(path: Path, count: int) -> str:
    """One line of the table."""
    model = canonicalise(read_source(path).model).model
    specs = input_specs(model)
    given = {specs[0].name: SIZES[path.stem]} if path.stem in SIZES else {}
    try:
        sizes = representative_sizes(model, given, batch=None)
    except OnnxCompressError:
        sizes = representative_sizes(model, {}, batch=None)
    coupling = analyse(model, sizes).coupling()
    axes = {t: coupling.lanes[t].axis for t in coupling.producers.values() if t in coupling.lanes}
    inputs = random_feeds(model, sizes)
    if path.stem.startswith("text_detection"):
        # On noise it sees no text at all: an output of zero, and gradients of zero.
        inputs = {specs[0].name: _text(*sizes[specs[0].name][2:])}
    whole = gradient_model(model, sizes, taps=axes)
    every = {**inputs, **feeds_of(whole, shapes_of(whole.model))}
    forward, backward = costs(model, whole.model, every)
    at = np.linspace(0, len(axes) - 1, min(count, len(axes))).astype(int)
    names = list(axes)
    built = gradient_model(model, sizes, taps={names[i]: axes[names[i]] for i in at}, gated=True)
    shapes = shapes_of(built.model)
    feeds = {**inputs, **feeds_of(built, shapes)}
    with open_session(built.model, Execution()) as session:
        run = session.run({k: feeds[k] for k in session.input_names})
        found = dict(zip(session.output_names, run, strict=True))
    loss = loss_of(model, built, feeds, shapes)
    errors = []
    for tap, output in built.products.items():
        gradient = found[output].astype(np.float64)
        norm = float(np.linalg.norm(gradient))
        if not norm:
            raise DataError(f"the gradient in '{tap}' is zero on random inputs")
        gate = built.gates[tap]
        along = gradient.reshape(shapes[gate]) / norm
        slopes = [
            (loss(gate, feeds[gate] + step * along) - loss(gate, feeds[gate] - step * along))
            / (2 * step)
            for step in STEPS
        ]
        errors.append(min(abs(slope / norm - 1) for slope in slopes))
    shape = "x".join(str(d) for d in next(iter(sizes.values())))
    return (
        f"| {path.stem} | {shape} | {len(axes)} | {len(errors)} | {max(errors):.1e} | "
        f"{1e3 * forward:.1f} | {1e3 * backward:.1f} | {backward / forward:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--taps", type=int, default=3)
    parser.add_argument("--only", default="")
    root = Path(__file__).resolve().parents[2]
    default = Path(os.environ.get("ONNXCOMPRESS_DATA", root.parent / "shared")) / "models"
    parser.add_argument("--folder", type=Path, default=default)
    given = parser.parse_args()
    print(
        "| network | input | taps | checked | worst error | forward ms | with gradients ms "
        "| ratio |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for path in sorted(given.folder.glob("*.onnx")):
        if given.only not in path.stem:
            continue
        try:
            print(row(path, given.taps), flush=True)
        except (OnnxCompressError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            print(f"| {path.stem} | {reason} | | | | | | |", flush=True)


if __name__ == "__main__":
    main()
