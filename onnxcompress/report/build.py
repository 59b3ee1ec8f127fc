"""The report as plain values (DESIGN section 6): version field, additive changes only."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnxcompress.analyse.facts import Facts
from onnxcompress.calibrate.inputs import Inputs
from onnxcompress.latency.table import LayerTiming
from onnxcompress.load.source import Source
from onnxcompress.plan.gate import Key, candidate_key
from onnxcompress.plan.plan import Plan
from onnxcompress.report.layers import layer_table
from onnxcompress.rewrite.manager import Proof
from onnxcompress.rewrite.mender import Mender
from onnxcompress.rewrite.precision import Conversion
from onnxcompress.rewrite.repair import Repaired
from onnxcompress.runtime import Execution, device_name
from onnxcompress.verify.accuracy import Accuracy
from onnxcompress.verify.intervals import json_number
from onnxcompress.verify.verdict import Verdict

VERSION = 1


def build_report(
    *,
    source: Source,
    digest: str,
    notes: tuple[str, ...],
    facts: Facts,
    inputs: Inputs,
    plan: Plan,
    timings: Mapping[Key, LayerTiming],
    verdict: Verdict,
    execution: Execution,
    seed: int,
    consulted: int,
    proofs: tuple[Proof, ...] = (),
    result: onnx.ModelProto | None = None,
    repaired: Repaired | None = None,
    repair: Mender | None = None,
    trained: Mapping[str, Any] | None = None,
    conversion: Conversion | None = None,
    unconverted: Accuracy | None = None,
    seconds: Mapping[str, float] | None = None,
    lossless_ratio: float | None = None,
) -> dict[str, Any]:
    """Everything about one job; figures are measured or counted, never assumed."""
    interval, accuracy = verdict.ratio.interval, verdict.accuracy
    return {
        "version": VERSION,
        "ok": verdict.ok,
        "failures": list(verdict.failures),
        "model": {
            "name": source.label,
            "digest": digest,
            "sizes": {name: list(size) for name, size in facts.sizes.items()},
            "opsets": {o.domain or "ai.onnx": o.version for o in source.model.opset_import},
            "canonical_form": list(notes),
        },
        "before": verdict.before.to_dict(),
        "after": verdict.after.to_dict(),
        "remaining": {k: verdict.remaining(k) for k in ("latency", "macs", "params", "size")},
        "latency_ratio": {
            "value": verdict.ratio.value,
            "ci95": [interval.low, interval.high],
            "slower": verdict.slower,
        },
        "lossless_latency_ratio": lossless_ratio,
        "drop": accuracy.drop.to_dict() if accuracy.drop else None,
        "accuracy": {
            "verified": accuracy.verified,
            "ok": accuracy.ok,
            "words": accuracy.words,
            "held_out_from_calibration": inputs.held_out,
            "consulted": consulted if accuracy.verified else 0,
        },
        "fidelity": {
            "inputs": "data" if accuracy.verified else "random",
            "outputs": [output.to_dict() for output in accuracy.fidelity],
        },
        "self_check": [
            {"pass": p.pass_name, "relative_error": p.error, "samples": p.samples} for p in proofs
        ],
        "repair": repair_summary(repaired, repair),
        "finetune": trained,
        "then": conversion_summary(conversion, unconverted),
        "exact": exact_rewrites(plan, timings),
        "layers": layer_table(facts, plan, timings, result),
        "refusals": [
            {"pass": r.pass_name, "node": r.node, "reason": r.reason} for r in plan.refusals
        ],
        "plan": plan.to_dict(),
        "predictions": [asdict(prediction) for prediction in plan.predictions],
        "data": {
            "calibration": data_summary(inputs.calibration),
            "synthetic": inputs.synthetic,
            "verdict": data_summary(inputs.verdict),
        },
        "environment": environment(execution, seed),
        "seconds": dict(seconds or {}),
    }


def repair_summary(repaired: Repaired | None, mender: Mender | None) -> dict[str, Any] | None:
    """What was fitted again: per layer the relative error of its answers on held-out inputs."""
    if repaired is None or mender is None:
        return None
    return {
        "method": mender.method,
        "samples": mender.samples,
        "layers": [
            {
                "node": one.node,
                "method": one.method,
                "error_before": one.before,
                "error_after": one.after,
                "shrinkage": one.shrinkage,
                "positions": one.rows,
                "unknowns": one.unknowns,
            }
            for one in repaired.mended
        ],
        "left": dict(repaired.left),
        "notes": repaired.shortages(),
    }


def conversion_summary(
    conversion: Conversion | None, unconverted: Accuracy | None
) -> dict[str, Any] | None:
    """The precision asked for, and what the compressed model lost before it was changed."""
    if conversion is None or unconverted is None:
        return None
    return {
        "precision": conversion.precision,
        "before_conversion": {
            "metric": unconverted.after.to_dict() if unconverted.after else None,
            "drop": unconverted.drop.to_dict() if unconverted.drop else None,
            "words": unconverted.words,
        },
    }


def exact_rewrites(plan: Plan, timings: Mapping[Key, LayerTiming]) -> list[dict[str, Any]]:
    """What was done before anything lossy, with the ratio by which the network's time changed."""
    rows = []
    for number, one in enumerate(plan.first, 1):
        for candidate in one:
            timing = timings.get(candidate_key(candidate))
            rows.append(
                {
                    "node": candidate.site.node,
                    "pass": candidate.site.pass_name,
                    "round": number,
                    "setting": candidate.to_dict()["setting"],
                    "latency_ratio": timing.ratio if timing is not None else None,
                }
            )
    return rows


def data_summary(data: Any) -> dict[str, Any] | None:
    """Where samples came from, how many, and a fingerprint of their content."""
    if data is None:
        return None
    return {
        "source": data.source,
        "samples": len(data),
        "labels": data.labels is not None,
        "fingerprint": data.fingerprint(),
    }


def environment(execution: Execution, seed: int) -> dict[str, Any]:
    """What the figures depend on besides the model."""
    return {
        "onnxcompress": version("onnxcompress"),
        "onnxruntime": onnxruntime.__version__,
        "onnx": onnx.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": device_name(execution),
        "providers": list(execution.providers),
        "threads": execution.threads,
        "seed": seed,
    }


def json_safe(value: Any) -> Any:
    """The same values with infinities as text and NaN as null, so that any JSON reader copes."""
    if isinstance(value, dict):
        return {key: json_safe(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(entry) for entry in value]
    if isinstance(value, np.generic):
        return json_safe(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return json_number(value)
    return value
