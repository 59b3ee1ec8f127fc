"""Lossless Tucker-2 and EVBMF with the latency gate, on every network of the shared folder.

    python tests/benchmarks/shared_models.py [--providers cpu] [--threads 2] [--only NAME]
        [--out docs/benchmarks-shared.md]

Prints (and with --out writes) three Markdown tables:

1. `tucker2:rank=full --gate off`: every dense k x k Conv becomes three; how far the outputs move.
2. `tucker2:rank=evbmf` and `svd:rank=evbmf` behind the latency gate: parameters, MACs, latency
   ratio, fidelity on real inputs; or why nothing was written.
3. the default job: every pass, the latency gate, at most one point lost (30 dB for networks that
   make no class decision), chosen on one part of the real inputs and judged on another.

The shared folder is found through ONNXCOMPRESS_DATA (default ../shared).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import onnxcompress as oc
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.preprocess_text import parse_preprocess
from onnxcompress.calibrate.spec import load_dataset
from onnxcompress.runtime import Execution, device_name

SHARED = Path(os.environ.get("ONNXCOMPRESS_DATA", "../shared"))
CIFAR = "data/cifar10_lossless/cifar10_lossless_test1000.npz"
CIFAR_TRAIN = "data/cifar10_lossless/cifar10_lossless_train4000.npz"
PHOTOS = "data/imagenet_samples"
MNIST = "data/mnist"
IMAGENET = "scale=1/255,mean=[.485,.456,.406],std=[.229,.224,.225]"
UNIT = "mean=127.5,std=127.5"


@dataclass(frozen=True)
class Subject:
    """One network and the real inputs it is judged on."""

    model: str
    data: str | None
    preprocess: str | None
    samples: int


SUBJECTS = (
    Subject("resnet20_cifar10", CIFAR, IMAGENET, 1000),
    Subject("resnet56_cifar10", CIFAR, IMAGENET, 1000),
    Subject("ic_resnet8_float", CIFAR, "scale=1", 1000),
    Subject("mnist_cntk", MNIST, "scale=1", 1000),
    Subject("squeezenet1.1_fp16w_imagenet", PHOTOS, "color=bgr,crop=227,mean=[104,117,123]", 1000),
    Subject("mobilenet_v2_1.0_224_dq", PHOTOS, f"crop=224,{UNIT},label_offset=1", 1000),
    Subject("mobilenet_v1_0.25_128_dq", PHOTOS, f"resize=128,{UNIT},label_offset=1", 1000),
    Subject("shufflenet_v2_1.0_dq", PHOTOS, f"crop=224,{IMAGENET}", 1000),
    Subject("deeplabv3_mnv2_pascal_dq", PHOTOS, f"resize=[513,513],{UNIT}", 16),
    Subject("yolox_nano_coco", PHOTOS, "resize=[416,416],color=bgr", 100),
    Subject("ultraface_RFB_320", PHOTOS, "resize=[240,320],mean=127,std=128", 200),
    Subject("yunet_n_320", PHOTOS, "resize=[320,320],color=bgr", 200),
    Subject("super_resolution_espcn", PHOTOS, "crop=224,color=gray,scale=1/255", 100),
    Subject("text_detection_ch_ppocrv3", PHOTOS, f"resize=[320,320],{IMAGENET}", 100),
    Subject("kws_dscnn_float", None, None, 0),
    Subject("shufflenet-v2-12-int8", PHOTOS, f"crop=224,{IMAGENET}", 200),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--providers", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", action="append", help="a part of a model's name")
    parser.add_argument("--table", action="append", type=int, choices=(1, 2, 3))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    execution = Execution(tuple(arguments.providers.split(",")), arguments.threads)
    chosen = [
        s for s in SUBJECTS if not arguments.only or any(part in s.model for part in arguments.only)
    ]
    lines = [
        f"Device {device_name(execution)}, providers {arguments.providers}, "
        f"{arguments.threads} threads, batch 1, ONNX Runtime {onnxruntime.__version__}.",
    ]
    wide = "| model | rewritten | params | MACs | latency ratio, 95 % | worst SNR dB | metric "
    for number, title, head, row in (
        (1, "Lossless Tucker-2 triples", LOSSLESS_HEAD, lossless),
        (2, "EVBMF ranks behind the latency gate", wide + "before | after | outcome |", gated),
        (3, "The default job", wide + "before | after | outcome |", planned),
    ):
        if arguments.table and number not in arguments.table:
            continue
        lines += ["", f"### {title}", "", head, "|---" * (head.count("|") - 1) + "|"]
        lines += [report_row(row(s, execution)) for s in chosen]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


LOSSLESS_HEAD = "| model | rewritten | worst relative L2 | metric before | after | samples |"


def lossless(subject: Subject, execution: Execution) -> list[str]:
    try:
        result = compress(subject, execution, [oc.use("tucker2", rank="full")], gate=False)
    except oc.BoundError as error:
        return [subject.model, "0", "-", "-", "-", short(error)]
    report = result.report
    worst = max(o["relative_l2"] for o in report["fidelity"]["outputs"])
    before, after, samples = metric(report)
    return [subject.model, rewritten(report), f"{worst:.1e}", before, after, samples]


def gated(subject: Subject, execution: Execution) -> list[str]:
    passes = [oc.use("tucker2", rank="evbmf"), oc.use("svd", rank="evbmf")]
    return described(subject, lambda: compress(subject, execution, passes, gate=True))


def planned(subject: Subject, execution: Execution) -> list[str]:
    path = SHARED / "models" / f"{subject.model}.onnx"
    if subject.data is None:
        return [subject.model, "0", *["-"] * 6, "no real inputs here"]
    calibration, judged = split_inputs(subject)
    return described(
        subject,
        lambda: oc.compress(
            path,
            data=calibration,
            eval_data=judged,
            providers=execution.providers,
            threads=execution.threads,
        ),
    )


def split_inputs(subject: Subject) -> tuple[Dataset, Dataset]:
    """Real inputs to choose on, and others to judge on."""
    path = SHARED / "models" / f"{subject.model}.onnx"
    judged = inputs(subject, path)
    if subject.data == CIFAR:
        return inputs(replace(subject, data=CIFAR_TRAIN, samples=4000), path), judged
    order = np.random.default_rng(0).permutation(len(judged))
    return judged.take(order[::2]), judged.take(order[1::2])


def described(subject: Subject, job: Callable[[], oc.Result]) -> list[str]:
    try:
        report, outcome = job().report, "written"
    except oc.BoundError as error:
        if error.report is None:
            return [subject.model, "0", *["-"] * 6, short(error)]
        report, outcome = error.report, "refused: " + short(error)
    left, (low, high) = report["remaining"], report["latency_ratio"]["ci95"]
    before, after, _ = metric(report)
    snr = min(float(o["snr_db"]) for o in report["fidelity"]["outputs"])
    return [
        subject.model,
        rewritten(report),
        f"{left['params']:.3f}",
        f"{left['macs']:.3f}",
        f"{left['latency']:.3f} [{low:.3f}, {high:.3f}]",
        f"{snr:.1f}",
        before,
        after,
        outcome,
    ]


def compress(subject: Subject, execution: Execution, passes: list[Any], *, gate: bool) -> oc.Result:
    path = SHARED / "models" / f"{subject.model}.onnx"
    return oc.compress(
        path,
        eval_data=inputs(subject, path),
        passes=passes,
        gate=gate,
        # The tables show what EVBMF does by itself: no bound interferes.
        max_drop=100.0,
        min_snr=-1000.0,
        providers=execution.providers,
        threads=execution.threads,
    )


def inputs(subject: Subject, path: Path) -> Dataset | None:
    if subject.data is None:
        return None
    specs = input_specs(onnx.load(path))
    recipe = parse_preprocess(subject.preprocess)
    source = SHARED / subject.data
    if subject.data == MNIST:
        archive = np.load(next(iter(sorted(source.glob("*test*.npz")))))
        rows = {"x": archive["x"][: subject.samples], "y": archive["y"][: subject.samples]}
        return dataset_from_arrays(rows, specs, preprocess=recipe, source="mnist test")
    return load_dataset(str(source), specs, preprocess=recipe, limit=subject.samples)


def metric(report: dict[str, Any]) -> tuple[str, str, str]:
    before, after = report["before"]["metric"], report["after"]["metric"]
    if after is None:
        return "random inputs", "-", "-"
    if after["name"] == "snr":
        return "-", f"SNR {float(after['value']):.1f} dB", str(after["n"])
    name = after["name"]
    return f"{name} {100 * before['value']:.1f}", f"{100 * after['value']:.1f}", str(after["n"])


def rewritten(report: dict[str, Any]) -> str:
    rows = report["layers"]
    return f"{sum(1 for row in rows if row['pass'])} of {len(rows)}"


def short(error: Exception) -> str:
    return str(error).split(" (best attempt")[0][:160].replace("|", "/")


def report_row(cells: list[str]) -> str:
    row = "| " + " | ".join(cells) + " |"
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
