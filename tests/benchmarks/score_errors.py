"""Which error of class scores on calibration images tells what images not seen will suffer.

    python tests/benchmarks/score_errors.py [--nets resnet20_cifar10 squeezenet1.1_fp16w_imagenet]

Single layers are rewritten, one candidate in the middle of every ladder and one at a quarter.
Several errors on 64 calibration images, none of which needs labels, are set against the
Kullback-Leibler divergence on other images: Spearman's rank correlation, and the standard deviation
of the logarithm of their ratio, which is what adding up damages suffers from. Needs the shared
folder (ONNXCOMPRESS_DATA, default ../shared), and onnx-tool and onnxsim for repair_tables.py.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import onnx
import repair_networks as networks
import repair_tables as tables
from scipy.special import log_softmax
from scipy.stats import spearmanr

import onnxcompress as oc
from onnxcompress.analyse.facts import analyse
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.calibrate.collectors import with_collectors
from onnxcompress.graph.memo import Memo
from onnxcompress.load.canonical import canonicalise
from onnxcompress.plan.known_moments import remember_facts
from onnxcompress.plan.options import collect
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.runtime import Execution

NETS = ("resnet20_cifar10", "squeezenet1.1_fp16w_imagenet")
ERRORS = ("plain", "without what is common", "divergence", "divergence, temperature 4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=NETS)
    arguments = parser.parse_args()
    print(f"| net | probes | {' | '.join(ERRORS)} |\n|---|---|---|---|---|---|", flush=True)
    for net in arguments.nets:
        found = np.array(list(probes(net)))
        # Where half of the answers are others nothing is in proportion any more.
        found = found[(found[:, 0] > 0.0) & (found[:, 1] < 0.5)]
        cells = []
        for errors in found[:, 2:].T:
            rank = spearmanr(errors, found[:, 0])[0]
            cells.append(f"{rank:.2f}, {np.std(np.log(errors / found[:, 0])):.2f}")
        print(f"| {net} | {len(found)} | {' | '.join(cells)} |", flush=True)


def probes(net: str) -> Any:
    """(divergence and share of other answers on images not seen, then the errors), by candidate."""
    model, fitted, judged = images(net)
    model = canonicalise(model).model
    specs = input_specs(model)
    sizes = {specs[0].name: (1, *fitted.shape[1:])}
    data = dataset_from_arrays({specs[0].name: fitted}, specs)
    facts = with_collectors(analyse(model, sizes), data, Execution(), 0, patched=128)
    passes = [oc.use("lnr", round_to=2, branches=False), oc.use("tucker2"), oc.use("svd")]
    memo = Memo()
    remember_facts(facts, memo)
    owners = {owner.name: owner for owner in passes}
    before = [networks.answers(model, part).astype(np.float64) for part in (fitted[:64], judged)]
    for offers in collect(facts, passes).sites:
        lossy = [c for c in offers if c.damage > 0]
        for at in sorted({len(lossy) // 2, len(lossy) // 4}) if lossy else ():
            made = rewrite(model, (lossy[at],), owners, strict=True, memo=memo).model
            seen, unseen = (networks.answers(made, part) for part in (fitted[:64], judged))
            others = float((unseen.argmax(axis=1) != before[1].argmax(axis=1)).mean())
            yield (divergence(before[1], unseen), others, *errors(before[0], seen))


def errors(expected: np.ndarray, found: np.ndarray) -> tuple[float, ...]:
    def relative(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.square(other - one).sum() / np.square(one).sum())

    def centred(scores: np.ndarray) -> np.ndarray:
        return scores - scores.mean(axis=1, keepdims=True)

    return (
        relative(expected, found),
        relative(centred(expected), centred(found)),
        divergence(expected, found),
        divergence(expected, found, 4.0),
    )


def divergence(expected: np.ndarray, found: np.ndarray, temperature: float = 1.0) -> float:
    one, other = (log_softmax(scores / temperature, axis=1) for scores in (expected, found))
    return float((np.exp(one) * (one - other)).sum(axis=1).mean())


def images(net: str) -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """The network, images to calibrate on, and others."""
    model = onnx.load(tables.SHARED / "models" / f"{net}.onnx")
    if net == NETS[0]:
        return model, tables.images("train4000", 512)[0], tables.images("test1000", 1000)[0]
    order, size, mean, deviation, _ = networks.CLASSIFIERS[net]
    stack = np.stack([networks.photograph(n, order, (size, size)) for n in range(0, 1000, 2)])
    scaled = (stack - np.float32(mean)[:, None, None]) / np.float32(deviation)[:, None, None]
    return model, scaled[::2], scaled[1::2]


if __name__ == "__main__":
    main()
