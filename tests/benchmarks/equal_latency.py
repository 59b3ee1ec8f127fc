"""The plan over all passes against single passes, uniform pruning and onnxsim, at equal latency.

    python tests/benchmarks/equal_latency.py --planned DIR --out DIR [--only NAME] [--target 0.6]
        [--threads 2] [--table] [--figure docs/figures/equal_latency.png]

DIR of --planned is what `latency_targets.py` left. Single passes are asked for the same latency;
pruning to equal fractions in multiples of 8 channels, and onnxsim's structured pruning, are
bisected until their measured latency is what was asked. Then all models of a network and target
are timed side by side, and judged on the inputs that the planned ones were judged on. Uniform
pruning is repaired as everything of ours is.

Needs onnxsim (and matplotlib for --figure).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxsim
from figures import pyplot
from latency_targets import case_path, source, subject
from shared_models import Subject, split_inputs

import onnxcompress as oc
from onnxcompress.analyse.sizes import random_feeds, representative_sizes
from onnxcompress.latency.interleave import Budget, interleaved
from onnxcompress.runtime import Execution
from onnxcompress.verify.compare import compare
from onnxcompress.verify.metrics import parse_metric

NETWORKS = ("resnet56_cifar10", "squeezenet1.1_fp16w_imagenet", "ultraface_RFB_320")
TARGETS = (0.8, 0.6)
SINGLE = ("tucker2", "svd", "lnr", "prune")
BISECTIONS = 6
SAMPLES = 64
"""Inputs that onnxsim's Wanda looks at."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--planned", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", help="a part of a network's name")
    parser.add_argument("--target", action="append", type=float)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "rows.jsonl"
    if not arguments.table:
        for name in NETWORKS:
            if arguments.only and not any(part in name for part in arguments.only):
                continue
            for target in arguments.target or TARGETS:
                planned = case_path(arguments.planned, name, target) / "out.onnx"
                with path.open("a") as file:
                    for row in Case(subject(name), target, arguments.threads).rows(planned):
                        file.write(json.dumps(row) + "\n")
                        print(row, flush=True)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    print(table(found))
    if arguments.figure:
        draw(found, arguments.figure)


class Case:
    """One network at one latency."""

    def __init__(self, subject: Subject, target: float, threads: int) -> None:
        self.subject, self.target = subject, target
        self.execution = Execution(threads=threads)
        self.original = source(subject.model)
        self.calibration, self.judged = split_inputs(subject)
        self.feeds = random_feeds(self.original, representative_sizes(self.original, {}), seed=0)

    def rows(self, planned: Path) -> Iterator[dict[str, Any]]:
        """Everything timed side by side, and judged."""
        models = dict(self.models(planned))
        timings = interleaved(
            [self.original, *models.values()], self.feeds, self.execution, budget=Budget(rounds=9)
        )
        first = timings[0].round_medians
        for (method, model), timing in zip(models.items(), timings[1:], strict=True):
            name, before, after = self.score(model)
            yield {
                "network": self.subject.model,
                "target": self.target,
                "method": method,
                "latency": float(np.median(timing.round_medians / first)),
                "metric": name,
                "before": before,
                "after": after,
            }

    def models(self, planned: Path) -> Iterator[tuple[str, onnx.ModelProto]]:
        if planned.exists():
            yield "planned", onnx.load(planned)
        for name in SINGLE:
            model = self.asked(["exact", name])
            if model is not None:
                yield name, model
        # Weights do not change the latency: the width is found first, and repaired then.
        share, _ = self.bisected(lambda share: self.uniform(share, repair="off"))
        yield "uniform, multiples of 8", self.uniform(share, repair="refit")
        for name, made in (("L2", self.onnxsim_l2), ("Wanda", self.onnxsim_wanda)):
            try:
                yield f"onnxsim {name}", self.bisected(made)[1]
            except oc.ModelError as error:
                # Depthwise layers come out with widths that do not fit.
                print(f"onnxsim {name}: {error}"[:200], flush=True)

    def asked(self, passes: list[str]) -> onnx.ModelProto | None:
        """What one pass makes of the target; None where it cannot reach it."""
        try:
            return self.compressed(passes, target={"latency": self.target})
        except oc.BoundError as error:
            print(f"{passes[-1]}: {error}"[:200], flush=True)
            return None

    def compressed(self, passes: list[str], **options: Any) -> onnx.ModelProto:
        return oc.compress(
            self.original,
            data=self.calibration,
            eval_data=self.judged,
            passes=passes,
            max_drop=100.0,
            min_snr=-1000.0,
            threads=self.execution.threads,
            **options,
        ).model

    def uniform(self, share: float, repair: str) -> onnx.ModelProto:
        return self.compressed([f"prune:channels={share},round_to=8"], gate=False, repair=repair)

    def onnxsim_l2(self, share: float) -> onnx.ModelProto:
        pruned: onnx.ModelProto = onnxsim.apply_structured_pruning(
            self.original, sparsity=1.0 - share, importance_norm="l2"
        )
        return fresh(pruned)

    def onnxsim_wanda(self, share: float) -> onnx.ModelProto:
        batches = self.calibration.take(range(SAMPLES)).batches(1)
        pruned: onnx.ModelProto = onnxsim.apply_structured_wanda_pruning(
            self.original,
            calibration_data=[feeds for feeds, _ in batches],
            sparsity=1.0 - share,
            providers=["CPUExecutionProvider"],
        )
        return fresh(pruned)

    def bisected(self, made: Callable[[float], onnx.ModelProto]) -> tuple[float, onnx.ModelProto]:
        """The largest share of channels at which the latency is what was asked; else the least."""
        low, high, best = 0.05, 1.0, None
        for _ in range(BISECTIONS):
            share = (low + high) / 2
            try:
                model = made(share)
            except oc.BoundError:
                # Nothing would go at this share.
                high = share
                continue
            if self.ratio(model) <= self.target:
                low, best = share, model
            else:
                high = share
        return low, best if best is not None else made(low)

    def ratio(self, model: onnx.ModelProto) -> float:
        one, other = interleaved(
            [self.original, model], self.feeds, self.execution, budget=Budget(rounds=5)
        )
        return float(np.median(other.round_medians / one.round_medians))

    def score(self, model: onnx.ModelProto) -> tuple[str, float, float]:
        metric = parse_metric("top1" if self.judged.labels is not None else "agreement")
        if self.subject.model.startswith("ultra"):
            metric = parse_metric("agreement")
        found = compare(self.original, model, self.judged, metric, self.execution, seed=0)
        if found.drop is None:
            return "snr", float("inf"), min(output.snr_db for output in found.fidelity)
        return metric.name, 100 * found.before.value, 100 * found.after.value


def fresh(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the shapes that a pruner left from before."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    return copy


def table(found: list[dict[str, Any]]) -> str:
    lines = ["| network | target | method | latency | metric | before | after |"]
    lines.append("|---" * 7 + "|")
    for row in found:
        before = "" if row["metric"] == "snr" else f"{row['before']:.1f}"
        lines.append(
            f"| {row['network']} | {row['target']} | {row['method']} | {row['latency']:.3f} | "
            f"{row['metric']} | {before} | {row['after']:.1f} |"
        )
    return "\n".join(lines)


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """What is left of the metric against measured latency, network by network."""
    plt = pyplot()
    names = list(dict.fromkeys(row["network"] for row in found))
    methods = list(dict.fromkeys(row["method"] for row in found))
    figure, _ = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.8))
    for axis, name in zip(figure.axes, names, strict=True):
        for number, method in enumerate(methods):
            rows = [r for r in found if (r["network"], r["method"]) == (name, method)]
            rows.sort(key=lambda r: r["latency"])
            axis.plot(
                [r["latency"] for r in rows],
                [r["after"] for r in rows],
                marker="o*s^vDPX"[number % 8],
                linewidth=2.2 if method == "planned" else 0.9,
                color=f"C{number}",
                label=method,
            )
        metrics = {r["metric"] for r in found if r["network"] == name}
        axis.set_title(name.split("_")[0], fontsize=10)
        axis.set_xlabel("measured latency (1 = original)")
        axis.set_ylabel("worst SNR, dB" if metrics == {"snr"} else "top-1, %")
    figure.axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
