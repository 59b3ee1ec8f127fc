"""Kernels from dictionaries, programs and mixed atoms on published networks: bytes, answers, time.

    python tests/benchmarks/dsl_networks.py [--only NAME] [--cost]

Every setting is carried out on all layers that have k x k kernels and repaired; then the result is
compared with the original on inputs that nothing was fitted on, and both are timed side by side.
`--cost` prints how long candidates take to find for ResNet-56, and how that grows with kernels.

The shared folder is found through ONNXCOMPRESS_DATA (default ../shared).
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnx
from shared_models import SHARED, SUBJECTS, Subject, split_inputs

from onnxcompress.analyse.sizes import random_feeds, representative_sizes
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.config import Config
from onnxcompress.graph.memo import Memo
from onnxcompress.kernels.dictionary import learn
from onnxcompress.kernels.induction import induce
from onnxcompress.kernels.search import vocabulary
from onnxcompress.latency.interleave import interleaved
from onnxcompress.pipeline import prepare
from onnxcompress.plan.channels.known import remember_coupling
from onnxcompress.plan.known_moments import remember_facts
from onnxcompress.plan.options import collect
from onnxcompress.plan.registry import parse_pass
from onnxcompress.preparation import Prepared
from onnxcompress.progress import Silent
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.rewrite.mender import Mender
from onnxcompress.runtime import Execution
from onnxcompress.verify.compare import compare
from onnxcompress.verify.metrics import parse_metric

NETWORKS = ("resnet20_cifar10", "squeezenet1.1_fp16w_imagenet", "ultraface_RFB_320")
SPECS = (
    "dsl:shared=kernels,count=256",
    "dsl:shared=kernels,count=64",
    "dsl:shared=kernels,count=16",
    "dsl:shared=kernels,source=predefined,price=0.03",
    "dsl:shared=kernels,source=predefined,price=0.3",
    "dsl:shared=atoms,count=4",
    "dsl:shared=atoms,count=2",
)
SAMPLES = 512
TWO = Execution(threads=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="a part of a network's name")
    parser.add_argument("--cost", action="store_true")
    arguments = parser.parse_args()
    if arguments.cost:
        cost()
        return
    print("| network | setting | layers | file | answers | latency | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in NETWORKS:
        if not arguments.only or any(part in name for part in arguments.only):
            network(next(subject for subject in SUBJECTS if subject.model == name))


def network(subject: Subject) -> None:
    path = SHARED / "models" / f"{subject.model}.onnx"
    calibration, judged = split_inputs(subject)
    given = onnx.load(path)
    job = prepared(given, calibration)
    for spec in SPECS:
        started = time.perf_counter()
        result, layers = carried_out(job, spec, calibration)
        seconds = time.perf_counter() - started
        labelled = judged.labels is not None and len(given.graph.output) == 1
        metric = parse_metric("top1" if labelled else "agreement")
        found = compare(given, result, judged, metric, TWO, seed=0)
        answers = f"{-10 * np.log10(max(found.error, 1e-30)):.1f} dB"
        if labelled:
            answers = f"top-1 {100 * found.before.value:.1f} -> {100 * found.after.value:.1f}"
        low, middle, high = ratio(given, result)
        size = result.ByteSize() / given.ByteSize()
        print(
            f"| {subject.model} | `{spec}` | {layers} | {size:.3f} | {answers} | "
            f"{middle:.3f} [{low:.3f}, {high:.3f}] | {seconds:.0f} |",
            flush=True,
        )


def prepared(model: onnx.ModelProto, data: Dataset) -> Prepared:
    config = Config(passes=(parse_pass("dsl"),), data=data, execution=TWO, samples=SAMPLES)
    return prepare(model, config, Silent())


def carried_out(job: Prepared, spec: str, data: Dataset) -> tuple[onnx.ModelProto, int]:
    """The tightest candidate of every layer, repaired."""
    owner, facts, memo = parse_pass(spec), job.facts, Memo()
    remember_facts(facts, memo)
    remember_coupling(facts, memo)
    chosen = [offers[-1] for offers in collect(facts, [owner]).sites]
    passes = {owner.name: owner}
    model = rewrite(facts.model, chosen, passes, strict=True, memo=memo).model
    mender = Mender(facts, data, passes, memo, TWO, 0, "refit", SAMPLES)
    mended = mender(model, chosen)
    return (mended.model if mended is not None else model), len(chosen)


def ratio(original: onnx.ModelProto, result: onnx.ModelProto) -> tuple[float, float, float]:
    """Latency over the original's: median over rounds, and where nineteen of twenty lie."""
    sizes = representative_sizes(original, {}, batch=1)
    feeds = random_feeds(original, sizes, seed=0)
    pair = [timing.round_medians for timing in interleaved([original, result], feeds, TWO)]
    each = pair[1] / pair[0]
    low, middle, high = np.percentile(each, [2.5, 50.0, 97.5])
    return float(low), float(middle), float(high)


def cost() -> None:
    """Seconds for all layers of ResNet-56 in one pass over the data, and growth with kernels."""
    subject = next(s for s in SUBJECTS if s.model == "resnet56_cifar10")
    calibration, _ = split_inputs(subject)
    job = prepared(onnx.load(SHARED / "models" / f"{subject.model}.onnx"), calibration)
    for spec in ("dsl", "dsl:distance=ssim", "dsl:shared=kernels", "dsl:shared=atoms",
                 "dsl:shared=kernels,source=predefined"):  # fmt: skip
        started = time.perf_counter()
        sites = collect(job.facts, [parse_pass(spec)]).sites
        offers = sum(map(len, sites))
        seconds = time.perf_counter() - started
        print(f"{spec}: {len(sites)} sites, {offers} candidates, {seconds:.1f} s", flush=True)
    chance = np.random.default_rng(0)
    for outputs in (16, 32, 64, 128, 256):
        weight = chance.standard_normal((outputs, 32, 9))
        rows = chance.standard_normal((1024, 288))
        metric = rows.T @ rows / len(rows)
        started = time.perf_counter()
        induce(weight, vocabulary(3, 2), 1e-6, metric)
        middle = time.perf_counter()
        learn(weight, 32, metric)
        print(
            f"{32 * outputs} kernels: programs {middle - started:.2f} s, "
            f"dictionary of 32 {time.perf_counter() - middle:.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
