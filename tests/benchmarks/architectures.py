"""CNN classifiers of torchvision and timm, with random weights, exported to ONNX in both styles.

    python tests/benchmarks/architectures.py --out DIR [--only REGEX] [--exporter NAME]

Needs torch, torchvision, timm and onnxscript beside onnxcompress; no trained weights and no
network. Every network is exported in a process of its own to DIR/<source>__<name>__<exporter>.onnx
and compared there with the module it came from. Files that exist are kept, so that a run can be
resumed; what failed is in DIR/failures.json and is tried again by the next run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SEED = 0
BATCH = 2
EXPORTERS = ("torchscript", "dynamo")

# The first names of every sweep: one of each kind, small ones first.
FIRST = (
    *("resnet18", "mobilenet_v2", "shufflenet_v2_x1_0", "densenet121", "squeezenet1_1"),
    *("googlenet", "efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf", "convnext_tiny"),
    *("inception_v3", "mnasnet0_5", "resnext50_32x4d"),
)

# Every classification CNN of torchvision 0.29 with at most 100 million parameters, smallest first
# after FIRST. Left out as larger: all VGG, convnext_large, efficientnet_v2_l, wide_resnet101_2 and
# the RegNets from 32gf on. Left out as transformers: ViT, Swin and MaxViT.
TORCHVISION = (
    *FIRST,
    *("squeezenet1_0", "shufflenet_v2_x0_5", "mnasnet0_75", "shufflenet_v2_x1_5", "mnasnet1_0"),
    *("mobilenet_v3_large", "regnet_x_400mf", "mnasnet1_3", "regnet_y_800mf", "regnet_x_800mf"),
    *("shufflenet_v2_x2_0", "efficientnet_b1", "efficientnet_b2", "regnet_x_1_6gf"),
    *("regnet_y_1_6gf", "efficientnet_b3", "densenet169", "regnet_x_3_2gf", "efficientnet_b4"),
    *("regnet_y_3_2gf", "densenet201", "efficientnet_v2_s", "resnet34", "resnet50"),
    *("densenet161", "efficientnet_b5", "regnet_y_8gf", "regnet_x_8gf", "efficientnet_b6"),
    *("resnet101", "convnext_small", "efficientnet_v2_m", "regnet_x_16gf", "resnet152"),
    *("alexnet", "efficientnet_b7", "wide_resnet50_2", "resnext101_64x4d", "regnet_y_16gf"),
    *("convnext_base", "resnext101_32x8d"),
)

# The first name of a family stands for it; ShuffleNet is not in timm, torchvision covers it.
TIMM: dict[str, tuple[str, ...]] = {
    "ResNeXt": ("resnext26ts", "resnext50_32x4d"),
    "RegNet": ("regnetx_002", "regnety_002"),
    "DenseNet": ("densenet121", "densenetblur121d"),
    "EfficientNet": ("efficientnet_lite0", "tf_efficientnet_b0"),
    "GhostNet": ("ghostnet_050", "repghostnet_050"),
    "Res2Net": ("res2net50_14w_8s", "dla60_res2net"),
    "CSPNet": ("cspresnet50", "cspdarknet53"),
    "DLA": ("dla46x_c", "dla34"),
    "HRNet": ("hrnet_w18_small",),
    "SENet": ("seresnet18", "legacy_seresnext26_32x4d"),
    "SKNet": ("skresnet18",),
    "ShuffleNet": (),
    "MobileNetV3": ("mobilenetv3_small_050", "tf_mobilenetv3_small_minimal_100"),
    "MobileNetV4": ("mobilenetv4_conv_small", "mobilenetv4_conv_blur_medium"),
    "Inception": ("inception_v3", "inception_next_atto"),
    "RepVGG": ("repvgg_a0",),
    "ConvNeXt": ("convnext_atto", "convnextv2_atto"),
    "VGG": ("vgg11",),
    "DPN": ("dpn48b", "dpn68"),
    "Xception": ("legacy_xception", "xception41"),
    "EdgeNeXt": ("edgenext_xx_small",),
}

# Keyword arguments of the constructor. Auxiliary heads are never exported; the truncated normal
# of Inception takes a minute; a full-size VGG head alone would be 120 million parameters.
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("torchvision", "googlenet"): {"aux_logits": False, "init_weights": False},
    ("torchvision", "inception_v3"): {"aux_logits": False, "init_weights": False},
    ("timm", "vgg11"): {"num_classes": 10, "mlp_ratio": 0.125},
}

# Pixels a side. Adaptive pooling to 6 or 7 pixels only exports where it is the identity.
SIZES = {
    ("torchvision", "alexnet"): 224,
    ("torchvision", "inception_v3"): 160,
    ("timm", "inception_v3"): 160,
    ("timm", "legacy_xception"): 160,
    ("timm", "vgg11"): 224,
}


def torchvision_models() -> Any:
    """Return torchvision.models, even where its compiled operators are missing.

    The fake kernels that torchvision registers at import belong to those operators (NMS, RoI
    pooling), of which no classifier has any.
    """
    library: Any = importlib.import_module("torch.library")
    register = library.register_fake

    def register_fake(op: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return register(op, *arguments, **options)

    library.register_fake = register_fake
    try:
        return importlib.import_module("torchvision.models")
    finally:
        library.register_fake = register


def input_size(source: str, name: str) -> int:
    """Return the height and width in pixels: about half of the default wherever that runs."""
    return SIZES.get((source, name), 128)


def build(source: str, name: str) -> Any:
    """Build a network with random weights in which no two channels are equal.

    Args:
        source: "torchvision" or "timm".
        name: name of the model there.

    Returns:
        the module in eval mode, the same one at every call.
    """
    import torch

    models = torchvision_models()  # timm imports torchvision too
    torch.manual_seed(SEED)
    options = OPTIONS.get((source, name), {})
    if source == "torchvision":
        module = models.get_model(name, weights=None, **options)
    else:
        module = importlib.import_module("timm").create_model(name, pretrained=False, **options)
    module.eval()
    randomise(module, input_size(source, name))
    return module


def randomise(module: Any, size: int) -> None:
    """Give every constant parameter, and all of batch normalisation, random values.

    Scales go to [0.5, 1.5] and offsets to N(0, 0.1). Running statistics are those of one random
    batch, disturbed by just that much in units of their own deviation: so activations stay of
    order one however deep the net, which statistics drawn from nothing do not give.
    """
    import torch

    draws = torch.Generator().manual_seed(SEED)

    def scale(like: Any) -> Any:
        return 0.5 + torch.rand(like.shape, generator=draws)

    def offset(like: Any) -> Any:
        return 0.1 * torch.randn(like.shape, generator=draws)

    def statistics(norm: Any, inputs: tuple[Any, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        # A channel that is dead in this batch keeps a variance of about one.
        variance = torch.where(variance < 1e-4, torch.ones_like(variance), variance)
        norm.running_mean.copy_(mean + offset(mean) * variance.sqrt())
        norm.running_var.copy_(variance * scale(variance))

    hooks = []
    with torch.no_grad():
        for part in module.modules():
            norm = isinstance(part, torch.nn.BatchNorm2d)
            for key, value in part.named_parameters(recurse=False):
                if not norm and (value.numel() == 1 or (value != value.flatten()[0]).any()):
                    continue
                shift = key.endswith("bias") or not (norm or value.any())
                value.copy_(offset(value) if shift else scale(value))
            if norm:
                hooks.append(part.register_forward_pre_hook(statistics))
        module(torch.randn(8, 3, size, size, generator=draws))
    for hook in hooks:
        hook.remove()


def export(module: Any, size: int, path: Path, exporter: str) -> str:
    """Write a module as one ONNX file.

    Args:
        module: network in eval mode that takes images, shape (N, 3, size, size).
        size: height and width in pixels.
        path: where to write.
        exporter: "torchscript" (opset 17, constants folded) or "dynamo" (default opset).

    Returns:
        "dynamic" or "static": whether the batch axis may vary.
    """
    import torch

    x = torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(SEED))
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"]}
    if exporter == "torchscript":
        axes = {"input": {0: "N"}, "output": {0: "N"}}
        torch.onnx.export(
            module,
            (x,),
            str(path),
            dynamo=False,
            opset_version=17,
            do_constant_folding=True,
            dynamic_axes=axes,
            **names,
        )
        return "dynamic"
    single = {"dynamo": True, "external_data": False, "verbose": False, **names}
    try:
        shapes = ({0: torch.export.Dim("N")},)
        torch.onnx.export(module, (x,), str(path), dynamic_shapes=shapes, **single)
    except Exception:  # noqa: BLE001 - whatever the exporter raises, a fixed batch may still work
        torch.onnx.export(module, (x,), str(path), **single)
        return "static"
    return "dynamic"


def largest_error(module: Any, size: int, path: Path, batch: int) -> float:
    """Run file and module on one random batch; return max |difference| over max |output|."""
    import numpy as np
    import onnxruntime as ort
    import torch

    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(SEED + 1))
    with torch.no_grad():
        expected = module(x).numpy()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def one(source: str, name: str, exporter: str, path: Path) -> str:
    """Build, export and compare one network; return a line about it."""
    import torch

    torch.set_num_threads(1)
    module, size = build(source, name), input_size(source, name)
    partial = path.with_suffix(".partial")
    axis = export(module, size, partial, exporter)
    error = max(
        largest_error(module, size, partial, batch)
        for batch in ((1, BATCH) if axis == "dynamic" else (BATCH,))
    )
    if not error < 1e-3:  # also when it is not a number
        raise ValueError(f"the file differs from the module by {error:.1e} of the largest output")
    partial.rename(path)
    return f"{axis} {size} px, error {error:.1e}"


def first_lines(error: BaseException) -> str:
    """Return the first line of an error and of the error at its root."""
    root = error
    while root.__cause__ is not None or root.__context__ is not None:
        root = root.__cause__ or root.__context__ or root
    chain = [error] if root is error else [error, root]
    lines = [f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[0]}" for e in chain]
    return " <- ".join(lines)


def plan() -> Iterator[tuple[str, str, str]]:
    """Yield (source, name, exporter): the sample with each exporter first, then the rest."""
    families = [names for names in TIMM.values() if names]
    sample = [("torchvision", name) for name in FIRST]
    sample += [("timm", names[0]) for names in families]
    rest = [("timm", name) for names in families for name in names[1:]]
    rest += [("torchvision", name) for name in TORCHVISION if name not in FIRST]
    for group in (sample, rest):
        for exporter in EXPORTERS:
            yield from ((source, name, exporter) for source, name in group)


def sweep(out: Path, wanted: Callable[[str], Any], exporters: tuple[str, ...]) -> None:
    """Export everything wanted that is not there yet, one process at a time."""
    out.mkdir(parents=True, exist_ok=True)
    ledger = out / "failures.json"
    failures: dict[str, str] = json.loads(ledger.read_text()) if ledger.exists() else {}
    for source, name, exporter in plan():
        key = f"{source}__{name}__{exporter}"
        path = out / f"{key}.onnx"
        if path.exists():
            failures.pop(key, None)
        if exporter not in exporters or not wanted(key) or path.exists():
            continue
        start = time.perf_counter()
        command = [sys.executable, __file__, "--out", str(out), "--one", source, name, exporter]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        try:
            child = subprocess.run(
                command, capture_output=True, text=True, env=environment, timeout=900, check=False
            )
            lines = child.stdout.strip().splitlines() or [f"exit {child.returncode}"]
            line, good = lines[-1], child.returncode == 0
        except subprocess.TimeoutExpired:
            line, good = "no result in 900 s", False
        failures.pop(key, None)
        if not good:
            failures[key] = line
            path.with_suffix(".partial").unlink(missing_ok=True)
        ledger.write_text(json.dumps(failures, indent=1))
        size = f"{path.stat().st_size / 1e6:.1f} MB, " if good else "FAILED "
        print(f"{key}: {time.perf_counter() - start:.1f} s, {size}{line}", flush=True)
    ledger.write_text(json.dumps(failures, indent=1))


def main() -> int:
    """Run the sweep, or one export of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="regular expression over the file stem")
    parser.add_argument("--exporter", choices=EXPORTERS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        source, name, exporter = given.one
        path = given.out / f"{source}__{name}__{exporter}.onnx"
        try:
            print(one(source, name, exporter, path))
        except Exception as error:  # noqa: BLE001 - whatever went wrong is the result
            print(first_lines(error))
            return 1
        return 0
    exporters = (given.exporter,) if given.exporter else EXPORTERS
    sweep(given.out, re.compile(given.only).search, exporters)
    return 0


if __name__ == "__main__":
    sys.exit(main())
