"""How much of each architecture two other pruners reach, and whether their results run.

    python tests/benchmarks/peers.py --exports DIR --out FILE [--only REGEX] [--peer NAME]

Torch-Pruning works on the modules of architectures.py; onnxsim on their exports in DIR, where
architectures.py wrote them. Every case has a process of its own. FILE is a JSON object,
{peer: {case: results}}; cases that are in it are not run again.
"""

from __future__ import annotations

import argparse
import collections
import copy
import importlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import onnx

RATIO = 0.25  # of the output channels of every convolution
SECONDS = 300  # granted to one case
PEERS = ("torch_pruning", "onnxsim")


def torch_pruning_coverage(source: str, name: str, size: int) -> dict[str, Any]:
    """Ask Torch-Pruning for a group for every convolution, then prune the whole network.

    Args:
        source: "torchvision" or "timm".
        name: name of the model there.
        size: height and width of the input in pixels.

    Returns:
        "convs", "channels": number of Conv2d and of their output channels; "grouped_convs",
        "grouped_channels": how many of these are in a group that passes the check of
        Torch-Pruning itself, when a random quarter of that convolution is to go; "errors": what
        was raised meanwhile, with counts; "seconds": what the dependency graph took; and what
        prune_by_magnitude says.
    """
    import torch

    tp = importlib.import_module("torch_pruning")
    torch.set_num_threads(1)
    module = architectures.build(source, name)
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(architectures.SEED))
    convs = [part for part in module.modules() if isinstance(part, torch.nn.Conv2d)]
    result: dict[str, Any] = {
        "size": size,
        "convs": len(convs),
        "channels": sum(conv.out_channels for conv in convs),
    }
    whole = copy.deepcopy(module)
    start = time.perf_counter()
    try:
        graph = tp.DependencyGraph().build_dependency(module, example_inputs=x, verbose=False)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is a result
        result["graph_error"] = architectures.first_lines(error)
    else:
        result["seconds"] = time.perf_counter() - start
        grouped, errors = grouped_convs(graph, convs)
        result["grouped_convs"] = len(grouped)
        result["grouped_channels"] = sum(conv.out_channels for conv in grouped)
        result["errors"] = errors
    return result | prune_by_magnitude(whole, x)


def grouped_convs(graph: Any, convs: list[Any]) -> tuple[list[Any], dict[str, int]]:
    """Return the convolutions with a group that passes the check, and the errors with counts."""
    tp = importlib.import_module("torch_pruning")
    draws = random.Random(architectures.SEED)
    found, errors = [], collections.Counter[str]()
    for conv in convs:
        quarter = max(1, round(RATIO * conv.out_channels))
        chosen = sorted(draws.sample(range(conv.out_channels), quarter))
        try:
            group = graph.get_pruning_group(conv, tp.prune_conv_out_channels, idxs=chosen)
            if graph.check_pruning_group(group):
                found.append(conv)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is a result
            errors[architectures.first_lines(error)] += 1
    return found, dict(errors)


def prune_by_magnitude(module: Any, x: Any) -> dict[str, Any]:
    """Prune a quarter of every group by L2 norm, but for the classifier, and run the result.

    Returns:
        "pruned": "ok", or what was raised and by which step; "parameters", "macs": the fractions
        that remain; "convs_changed", "channels_removed": over the convolutions;
        "pruner_seconds": what pruning took, its own dependency graph included.
    """
    import torch

    tp = importlib.import_module("torch_pruning")
    with torch.no_grad():
        expected = module(x).shape
    macs, parameters = tp.utils.count_ops_and_params(module, x)
    convs = [part for part in module.modules() if isinstance(part, torch.nn.Conv2d)]
    widths = [conv.out_channels for conv in convs]
    classifiers = [
        part
        for part in module.modules()
        if getattr(part, "out_features", getattr(part, "out_channels", 0)) == expected[1]
    ]
    start = time.perf_counter()
    step = "pruner"
    try:
        tp.pruner.MagnitudePruner(
            module,
            x,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=RATIO,
            ignored_layers=classifiers[-1:],
        ).step()
        seconds = time.perf_counter() - start
        step = "forward"
        with torch.no_grad():
            found = module(x)
        if found.shape != expected or not torch.isfinite(found).all():
            raise ValueError(f"output of shape {tuple(found.shape)}, finite or not")
        left = tp.utils.count_ops_and_params(module, x)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is a result
        return {"pruned": f"{step}: {architectures.first_lines(error)}"}
    lost = [width - conv.out_channels for width, conv in zip(widths, convs, strict=True)]
    return {
        "pruned": "ok",
        "parameters": left[1] / parameters,
        "macs": left[0] / macs,
        "convs_changed": sum(n > 0 for n in lost),
        "channels_removed": sum(lost),
        "pruner_seconds": seconds,
    }


def onnxsim_coverage(path: Path) -> dict[str, Any]:
    """Prune an exported file with onnxsim, structured and by L2 norm, and run the result.

    Args:
        path: the ONNX file.

    Returns:
        "convs", "channels": number of Conv and of their output channels; "pruned": "ok" or what
        was raised; "convs_changed", "channels_removed": over the Conv; "parameters": the fraction
        that remains; "checker", "runs": "ok", or what the full check of onnx and what
        ONNX Runtime raised; "seconds": what pruning took.
    """
    onnxsim = importlib.import_module("onnxsim")
    model = onnx.load(path)
    before = conv_widths(model)
    parameters = count_parameters(model)
    result: dict[str, Any] = {"convs": len(before), "channels": sum(before)}
    start = time.perf_counter()
    try:
        pruned = onnxsim.apply_structured_pruning(model, sparsity=RATIO, importance_norm="l2")
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is a result
        return result | {"pruned": architectures.first_lines(error)}
    result["seconds"] = time.perf_counter() - start
    after = conv_widths(pruned)
    result["pruned"] = "ok"
    result["parameters"] = count_parameters(pruned) / parameters
    result["channels_removed"] = sum(before) - sum(after)
    if len(before) == len(after):
        result["convs_changed"] = sum(a != b for a, b in zip(before, after, strict=True))
    result["checker"] = attempt(lambda: onnx.checker.check_model(pruned, full_check=True))
    result["runs"] = attempt(lambda: run(pruned))
    return result


def attempt(action: Callable[[], object]) -> str:
    """Return "ok", or what the action raised."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - whatever a peer left behind is a result
        return architectures.first_lines(error)
    return "ok"


def run(model: onnx.ModelProto) -> None:
    """Run a model once on random images; outputs must be finite and as large as declared."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    data = model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    shape = [d if isinstance(d, int) else architectures.BATCH for d in given.shape]
    draws = np.random.default_rng(architectures.SEED)
    outputs = session.run(None, {given.name: draws.standard_normal(shape, dtype=np.float32)})
    for output, declared in zip(outputs, session.get_outputs(), strict=True):
        if output.shape[1:] != tuple(declared.shape[1:]) or not np.isfinite(output).all():
            raise ValueError(f"{declared.name} is {output.shape}, or not finite")


def conv_widths(model: onnx.ModelProto) -> list[int]:
    """Return the number of output channels of every Conv, in the order of the nodes."""
    shapes = {weight.name: weight.dims for weight in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    return [shapes[node.input[1]][0] for node in nodes if node.input[1] in shapes]


def count_parameters(model: onnx.ModelProto) -> int:
    """Return the number of elements of all floating-point initializers."""
    weights = [w for w in model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT]
    return sum(int(np.prod(weight.dims)) for weight in weights)


def cases(exports: Path) -> Iterator[tuple[str, str]]:
    """Yield (peer, case): every network once, every export that is there."""
    seen = set()
    for source, name, exporter in architectures.plan():
        if (source, name) not in seen:
            seen.add((source, name))
            yield "torch_pruning", f"{source}__{name}"
        if (exports / f"{source}__{name}__{exporter}.onnx").exists():
            yield "onnxsim", f"{source}__{name}__{exporter}"


def one(peer: str, case: str, exports: Path) -> dict[str, Any]:
    """Run one case in this process."""
    if peer == "onnxsim":
        return onnxsim_coverage(exports / f"{case}.onnx")
    source, name = case.split("__")
    return torch_pruning_coverage(source, name, architectures.input_size(source, name))


def apart(peer: str, case: str, exports: Path) -> dict[str, Any]:
    """Run one case in a process of its own; a crash or a hang is a result as well."""
    command = [sys.executable, __file__, "--exports", str(exports), "--one", peer, case]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"pruned": f"no result in {SECONDS} s"}
    lines = child.stdout.strip().splitlines()
    if child.returncode == 0 and lines:
        return dict(json.loads(lines[-1]))
    last = (child.stderr.strip().splitlines() or [""])[-1]
    return {"pruned": f"exit {child.returncode}: {last}"}


def main() -> int:
    """Run every case that is not in the file yet, or one case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--exports", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("peers.json"))
    parser.add_argument("--only", default="", help="regular expression over the case")
    parser.add_argument("--peer", choices=PEERS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        peer, case = given.one
        print(json.dumps(one(peer, case, given.exports)))
        return 0
    results: dict[str, dict[str, Any]] = {peer: {} for peer in PEERS}
    if given.out.exists():
        results |= json.loads(given.out.read_text())
    for peer, case in cases(given.exports):
        unwanted = given.peer not in (None, peer) or not re.search(given.only, case)
        if unwanted or case in results[peer]:
            continue
        results[peer][case] = apart(peer, case, given.exports)
        given.out.write_text(json.dumps(results, indent=1))
        print(f"{peer} {case}: {json.dumps(results[peer][case])}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
