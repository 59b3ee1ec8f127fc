"""Tucker-2 in the metric of the data against that of the weights, at equal MACs; and a figure.

    python tests/benchmarks/data_metric.py [--figure docs/figures/data_metric.png]

ResNet-56 for CIFAR-10: 1,024 unlabelled training images to calibrate, accuracy on 1,000 test
images. ultraface: photographs, the signal-to-noise ratio of the worst output on 40 others. Each
without repair and with it. Needs the shared folder (ONNXCOMPRESS_DATA, default ../shared),
onnx-tool and onnxsim (for repair_tables.py), and matplotlib for the figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import repair_networks as networks
import repair_tables as tables
from figures import pyplot

import onnxcompress as oc

CLASSIFIER, DETECTOR = "resnet56_cifar10", "ultraface_RFB_320"
# Of ultraface little is dense k x k: Tucker-2 alone can take a fifth of the multiplications.
RATIOS = {CLASSIFIER: (0.8, 0.7, 0.6, 0.5, 0.4), DETECTOR: (0.95, 0.9, 0.85)}
WAYS = [(repair, metric) for repair in ("off", "refit") for metric in ("weights", "data")]
NAMES = {"off": "no repair", "refit": "repaired"}
Curves = dict[tuple[str, str], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--samples", type=int, default=256, help="photographs")
    arguments = parser.parse_args()
    classifier = onnx.load(tables.SHARED / "models" / f"{CLASSIFIER}.onnx")

    def accuracy(macs: float, metric: str, repair: str) -> float:
        made = tables.compressed(classifier, (tucker2(metric),), macs, 0, repair=repair)
        return tables.top1(made)

    model, fitted, judged = networks.signal(DETECTOR, arguments.samples)

    def snr(macs: float, metric: str, repair: str) -> float:
        result = oc.compress(
            model,
            data=fitted,
            eval_data=judged,
            passes=[tucker2(metric)],
            target={"macs": macs},
            min_snr=-100.0,
            samples=arguments.samples,
            repair=repair,
        )
        return networks.worst(result)

    panels = {
        (CLASSIFIER, "top-1 of 1,000 test images, %"): curves(CLASSIFIER, accuracy),
        (DETECTOR, "SNR of the worst output, dB"): curves(DETECTOR, snr),
    }
    if arguments.figure is not None:
        draw(panels, arguments.figure)


def tucker2(metric: str) -> str:
    return f"tucker2:metric={metric},round_to=2,rungs=16"


def curves(net: str, score: Callable[[float, str, str], float]) -> Curves:
    """Scores by MACs; a row of the table for each ratio."""
    heads = " | ".join(f"{metric}, {NAMES[repair]}" for repair, metric in WAYS)
    print(f"\n| {net}, MACs | {heads} |\n|---|---|---|---|---|", flush=True)
    found: Curves = {way: [] for way in WAYS}
    for macs in RATIOS[net]:
        for repair, metric in WAYS:
            found[repair, metric].append(score(macs, metric, repair))
        row = " | ".join(f"{found[way][-1]:.1f}" for way in WAYS)
        print(f"| {macs} | {row} |", flush=True)
    return found


def draw(panels: dict[tuple[str, str], Curves], path: Path) -> None:
    """One panel for each network."""
    plt: Any = pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4))
    for axis, ((net, label), found) in zip(axes, panels.items(), strict=True):
        for (repair, metric), values in found.items():
            axis.plot(
                RATIOS[net],
                values,
                color={"weights": "tab:orange", "data": "tab:blue"}[metric],
                linestyle={"off": "--", "refit": "-"}[repair],
                marker="o",
                markersize=4,
                label=f"metric={metric}, {NAMES[repair]}",
            )
        axis.set(title=net, xlabel="MACs left", ylabel=label)
        axis.invert_xaxis()
        axis.grid(visible=True, lw=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
