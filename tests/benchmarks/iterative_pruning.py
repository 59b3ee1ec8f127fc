"""The loop of Molchanov et al. 2017: score, remove the least, a few updates, and again.

    python tests/benchmarks/iterative_pruning.py --out DIR [--only CRITERION] [--network NAME]
        [--step 0.08] [--until 0.3] [--for 1e] [--table] [--figure docs/figures/iterative.png]

Every step removes a share of the network's channels, the least important ones of all layers
together by a criterion that is asked anew; with updates, the network is then trained for an epoch
(3,600 images, towards the original's answers). Scores are taken on 512 labelled images, those of
the oracle on 256 of them. Nothing is repaired, so that the criteria alone differ. Accuracy against
the share of MACs that is left: on 1,000 test images of CIFAR-10, or for `vgg_tiny` on the 10,000 of
Fashion-MNIST.

The shared folder is found through ONNXCOMPRESS_DATA (default ../shared). Needs PyTorch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from figures import pyplot
from shared_models import CIFAR, CIFAR_TRAIN, SHARED, SUBJECTS

import onnxcompress as oc
from onnxcompress.analyse.facts import Facts, analyse
from onnxcompress.analyse.sizes import input_specs, representative_sizes
from onnxcompress.calibrate.inputs import open_data
from onnxcompress.embedded import embedded
from onnxcompress.load.canonical import canonicalise
from onnxcompress.runtime import Execution
from onnxcompress.verify.compare import evaluate
from onnxcompress.verify.metrics import parse_metric

CRITERIA = ("taylor", "activation-mean", "weight", "apoz", "random", "oracle-abs")
SCORED = 512
IMAGES = 4000
"""A tenth of which is held out to choose epochs by."""
THREADS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", help="a criterion")
    parser.add_argument("--network", default="ic_resnet8_float")
    parser.add_argument("--step", type=float, default=0.08, help="share of the channels")
    parser.add_argument("--until", type=float, default=0.3, help="share of the channels left")
    parser.add_argument("--for", dest="effort", default="1e")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "rows.jsonl"
    if not arguments.table:
        for effort in (None, arguments.effort):
            for criterion in arguments.only or CRITERIA:
                case = {"network": arguments.network, "step": arguments.step}
                case |= {"criterion": criterion, "effort": effort}
                if any(case.items() <= row.items() for row in rows(path)):
                    continue
                loop = Loop(arguments.network, criterion, effort)
                found = list(loop.steps(arguments.step, arguments.until))
                with path.open("a") as file:
                    for row in found:
                        file.write(json.dumps(case | row) + "\n")
                print(case, [(round(r["macs"], 2), r["top1"]) for r in found], flush=True)
    shown = [row for row in rows(path) if row["network"] == arguments.network]
    print(table(shown))
    if arguments.figure:
        draw(shown, arguments.figure)


class Loop:
    """One network pruned step by step."""

    def __init__(self, network: str, criterion: str, effort: str | None) -> None:
        self.criterion, self.effort = criterion, effort
        train, self.judged, self.preprocess = images(network)
        self.source = source(network)
        with np.load(train) as arrays:
            self.data = {name: arrays[name][:IMAGES] for name in arrays}
        self.scored = {name: values[:SCORED] for name, values in self.data.items()}

    def steps(self, step: float, until: float) -> Iterator[dict[str, Any]]:
        """MACs and accuracy, of the original first."""
        model = onnx.load(self.source)
        whole = left = channels(model)
        yield self.row(model, left / whole)
        while left / whole > until:
            share = 1 - round(step * whole) / left
            model = self.pruned(model, share)
            left = channels(model)
            if self.effort is not None:
                model = oc.distil(
                    model,
                    self.source,
                    data=self.data,
                    eval_data=self.judged,
                    effort=self.effort,
                    preprocess=self.preprocess,
                    threads=THREADS,
                ).model
            yield self.row(model, left / whole)

    def pruned(self, model: onnx.ModelProto, share: float) -> onnx.ModelProto:
        options = f"criterion={self.criterion},scope=global,channels={share},round_to=1"
        return oc.compress(
            model,
            data=self.scored,
            eval_data=self.judged,
            passes=[f"prune:{options}"],
            preprocess=self.preprocess,
            gate=False,
            repair="off",
            # Trials use half of the bound, and random removals lose more than fifty points at once.
            max_drop=1000.0,
            threads=THREADS,
        ).model

    def row(self, model: onnx.ModelProto, share: float) -> dict[str, Any]:
        data = open_data(self.judged, input_specs(model), self.preprocess, "test")
        found = evaluate(model, data, parse_metric("top1"), Execution(threads=THREADS), seed=0)
        macs = known(model).total().macs / known(onnx.load(self.source)).total().macs
        return {"channels": share, "macs": macs, "top1": round(100 * found.value, 2)}


def source(network: str) -> Path:
    if network == "vgg_tiny":
        return embedded("vgg_tiny.onnx")
    return SHARED / "models" / f"{network}.onnx"


def images(network: str) -> tuple[str, str, str]:
    """What a network is scored and trained on, what it is judged on, and what is done to images."""
    if network == "vgg_tiny":
        train, judged = (
            SHARED / "data" / f"fashion_mnist/fashion_{p}.npz" for p in ("train", "test")
        )
        return str(train), str(judged), "scale=1/255,mean=0.2860,std=0.3530"
    (subject,) = [one for one in SUBJECTS if one.model == network]
    return str(SHARED / CIFAR_TRAIN), str(SHARED / CIFAR), subject.preprocess


def known(model: onnx.ModelProto) -> Facts:
    canonical = canonicalise(model).model
    return analyse(canonical, representative_sizes(canonical, {}))


def channels(model: onnx.ModelProto) -> int:
    """Channels of all coupled groups."""
    return sum(group.width for group in known(model).coupling().groups)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curves(found: list[dict[str, Any]], *, trained: bool) -> dict[str, list[tuple[float, float]]]:
    """(MACs, top-1) by criterion, from the original down."""
    sides: dict[str, list[tuple[float, float]]] = {}
    for row in found:
        if (row["effort"] is not None) == trained:
            sides.setdefault(row["criterion"], []).append((row["macs"], row["top1"]))
    return sides


def table(found: list[dict[str, Any]]) -> str:
    """Top-1 at some shares of MACs, between the steps in a straight line."""
    shares = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
    lines = ["| criterion | updates | " + " | ".join(f"{s:g}" for s in shares) + " | mean |"]
    lines.append("|---" * (len(shares) + 3) + "|")
    for trained in (False, True):
        for criterion, curve in curves(found, trained=trained).items():
            macs, top = zip(*sorted(curve), strict=True)
            at = [float(np.interp(s, macs, top)) for s in shares]
            cells = " | ".join(f"{value:.1f}" for value in (*at, float(np.mean(at))))
            lines.append(f"| `{criterion}` | {'yes' if trained else 'no'} | {cells} |")
    return "\n".join(lines)


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against MACs, without and with updates."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for axis, trained, title in zip(
        axes, (False, True), ("pruned only", "an epoch after every step"), strict=True
    ):
        for number, (criterion, curve) in enumerate(curves(found, trained=trained).items()):
            macs, top = zip(*curve, strict=True)
            axis.plot(macs, top, marker="o*s^vD"[number % 6], color=f"C{number}", label=criterion)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("MACs (1 = original)")
    axes[0].set_ylabel("top-1, %")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
