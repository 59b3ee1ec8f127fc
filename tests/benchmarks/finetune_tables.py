"""What a few minutes of distillation are worth, without labels.

    python tests/benchmarks/finetune_tables.py --out DIR [--only NAME] [--for 15e] [--seeds 3]
        [--stages 3] [--rate 4e-3] [--augment flip,crop,zoom]

CIFAR-10: networks at a fraction of their multiplications, repaired, then trained on the 4,000
training images that they were calibrated on; accuracy on 1,000 test images before and after.
Other networks: the signal-to-noise ratio on photographs that nothing was calibrated on.
DIR keeps compressed and trained models; what is there is not made again. With --stages the way to
the target is gone in so many steps, each repaired and trained; the effort is shared.

The shared folder is found through ONNXCOMPRESS_DATA (default ../shared).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from shared_models import CIFAR, CIFAR_TRAIN, IMAGENET, SHARED, SUBJECTS, split_inputs

import onnxcompress as oc
from onnxcompress.report.write import write_json, write_model

THREADS = 2
PHOTOGRAPHS = 1000
ENDS = ("repaired", "trained")


@dataclass(frozen=True)
class Case:
    """A network and what is to remain of its multiplications."""

    network: str
    macs: float
    snr: bool = False


CASES = (
    Case("resnet56_cifar10", 0.5),
    Case("resnet56_cifar10", 0.39),
    Case("resnet20_cifar10", 0.5),
    Case("super_resolution_espcn", 0.7, snr=True),
    Case("yolox_nano_coco", 0.7, snr=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", help="a part of NAME-FRACTION")
    parser.add_argument("--for", dest="effort", default="15e")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--augment", default="auto")
    arguments = parser.parse_args()
    own = {"rate": arguments.rate, "augment": arguments.augment}
    if arguments.stages > 1 and own != {"rate": None, "augment": "auto"}:
        parser.error("--rate and --augment are of one stage")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        name = f"{case.network}-{case.macs:g}"
        if arguments.only and not any(part in name for part in arguments.only):
            continue
        rows = []
        for seed in range(1 if case.snr else arguments.seeds):
            stem = arguments.out / f"{name}-{seed}"
            if arguments.stages > 1:
                row = staged(case, stem, arguments.effort, seed, arguments.stages)
            else:
                row = measured(case, stem, arguments.effort, seed, own)
            rows.append(row)
            print(f"{name} seed {seed}: {row}", flush=True)
        means = {at: float(np.mean([row[at] for row in rows])) for at in ENDS if at in rows[0]}
        told = ", ".join(f"{mean:.2f} {at}" for at, mean in means.items())
        print(f"{name}: {told} ({rows[0]['unit']})")


def measured(
    case: Case, stem: Path, effort: str, seed: int, own: Mapping[str, Any]
) -> dict[str, Any]:
    """Compress, train, and compare with the original."""
    source = SHARED / "models" / f"{case.network}.onnx"
    options = inputs(case)
    small = stem.with_suffix(f"{stem.suffix}.small.onnx")
    if not small.exists():
        started = time.perf_counter()
        result = oc.compress(source, seed=seed, **asked(case), **options)
        write_model(result.model, small)
        print(f"{small.name}: compressed in {time.perf_counter() - started:.0f} s", flush=True)
    named = "".join(f".{value}" for value in own.values() if value not in (None, "auto"))
    kept = stem.with_name(f"{stem.name}.{effort}{named}.json")
    if not kept.exists():
        found = oc.distil(
            small, source, effort=effort, threads=THREADS, seed=seed, **own, **options
        )
        write_json(found.report, kept)
        onnx.save(found.model, kept.with_suffix(".onnx"))
    report = json.loads(kept.read_text())
    before, after = (report[when]["metric"]["value"] for when in ("before", "after"))
    scale, unit = (1, "dB") if report["after"]["metric"]["name"] == "snr" else (100, "%")
    return {
        "repaired": round(scale * before, 2),
        "trained": round(scale * after, 2),
        "original": "" if unit == "dB" else round(100 * report["reference_metric"]["value"], 2),
        "unit": unit,
        "minutes": round(report["finetune"]["seconds"] / 60, 1),
        "distance": [round(float(d), 4) for d in report["finetune"]["distance"]],
    }


def staged(case: Case, stem: Path, effort: str, seed: int, stages: int) -> dict[str, Any]:
    """The same in steps."""
    kept = stem.with_suffix(f"{stem.suffix}.{effort}.{stages}.json")
    if not kept.exists():
        result = oc.compress(
            SHARED / "models" / f"{case.network}.onnx",
            seed=seed,
            finetune=effort,
            stages=stages,
            **asked(case),
            **inputs(case),
        )
        write_json(result.report, kept)
        write_model(result.model, kept.with_suffix(".onnx"))
    report = json.loads(kept.read_text())
    every = [*report["stages"], report]
    value = report["after"]["metric"]["value"]
    snr = report["after"]["metric"]["name"] == "snr"
    return {
        "trained": round(value if snr else 100 * value, 2),
        "on the way": [round(float(one["after"]["metric"]["value"]), 4) for one in every],
        "unit": "dB" if snr else "%",
        "macs": report["remaining"]["macs"],
        "minutes": round(sum(one["finetune"]["seconds"] for one in every) / 60, 1),
        "job minutes": round(sum(sum(one["seconds"].values()) for one in every) / 60, 1),
    }


def asked(case: Case) -> dict[str, Any]:
    return {
        "target": {"macs": case.macs},
        "max_drop": 100.0,
        "min_snr": -math.inf,
        "threads": THREADS,
    }


def inputs(case: Case) -> dict[str, Any]:
    """What is calibrated and trained on, and what is judged on."""
    if not case.snr:
        data, judged = str(SHARED / CIFAR_TRAIN), str(SHARED / CIFAR)
        return {"data": data, "eval_data": judged, "preprocess": IMAGENET}
    (subject,) = [one for one in SUBJECTS if case.network == one.model]
    calibration, held_out = split_inputs(replace(subject, samples=PHOTOGRAPHS))
    return {"data": calibration, "eval_data": held_out}


if __name__ == "__main__":
    main()
