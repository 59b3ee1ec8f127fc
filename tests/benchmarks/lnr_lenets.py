"""LeNet-300-100 and Caffe's LeNet-5, compressed without retraining by Linear Neural Reconstruction.

    python tests/benchmarks/lnr_lenets.py [--networks lenet5_caffe] [--only recipes] [--trainings 5]

Needs MNIST in the shared folder (ONNXCOMPRESS_DATA, default ../shared), scikit-learn for the split
of the trainings, matplotlib for the figures (pip install matplotlib), and five trainings of each:

    for s in 0 1 2 3 4; do python models/train_lenets.py --seed $s --out out/lenets; done

Calibrated on unlabelled training images. Ranks and widths were chosen on the 10,000 validation
images of trainings 0 and 1; the 10,000 test images only score. Sizes are counts of parameters.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from figures import pyplot
from sklearn.model_selection import train_test_split

import onnxcompress as oc
from onnxcompress.analyse.facts import Facts
from onnxcompress.calibrate.moments import CollectedMoments
from onnxcompress.config import Config
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.memo import Memo
from onnxcompress.load.canonical import canonicalise
from onnxcompress.pipeline import prepare
from onnxcompress.plan.channels.known import remember_coupling
from onnxcompress.plan.contract import Candidate, Pass
from onnxcompress.plan.known_moments import remember_facts
from onnxcompress.plan.options import collect
from onnxcompress.plan.registry import parse_pass
from onnxcompress.progress import Silent
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.rewrite.repair import Repair
from onnxcompress.runtime import Execution, open_session

SHARED = Path(os.environ.get("ONNXCOMPRESS_DATA", "../shared"))
MNIST = SHARED / "data" / "mnist"
TRAININGS = Path("out/lenets")
ONE = Execution(threads=1)
SAMPLES = 10_000


Step = Mapping[str, tuple[str, ...]]
"""Passes that are applied together, and the layers that each is applied to."""


def mlp(share: float, first: int, second: int) -> tuple[Step, ...]:
    """LeNet-300-100: share of the hidden units that stays, and ranks of the first two layers."""
    low = {f"svd:metric=data,rank={first}": ("fc1",)}
    if second:
        low[f"svd:metric=data,rank={second}"] = ("fc2",)
    return ({f"lnr:channels={share}": ("fc1", "fc2")}, low)


def conv(share: float, core: str, rank: int) -> tuple[Step, ...]:
    """LeNet-5: share of conv2's channels and of fc1's units that stays, ranks of both layers."""
    return (
        {f"lnr:channels={share}": ("conv2", "fc1")},
        {f"tucker2:metric=data,rank={core}": ("conv2",), f"svd:metric=data,rank={rank}": ("fc1",)},
    )


RECIPES: Mapping[str, Sequence[tuple[Step, ...]]] = {
    "lenet_300_100": (mlp(0.9, 90, 0), mlp(0.8, 50, 0), mlp(0.8, 40, 24), mlp(0.8, 30, 20)),
    "lenet5_caffe": (
        conv(0.9, "45x10", 44),
        conv(0.8, "40x8", 28),
        conv(0.7, "30x7", 23),
        conv(0.6, "24x6", 18),
    ),
}
BY_PLAN: Mapping[str, Sequence[tuple[tuple[str, ...], float]]] = {
    "lenet_300_100": ((("lnr",), 0.5), (("lnr",), 0.3), (("svd:metric=data",), 0.3)),
    "lenet5_caffe": ((("lnr",), 0.3), (("lnr",), 0.1), (("svd:metric=data", "tucker2"), 0.1)),
}
"""What the plan makes of a target by itself: one call of `compress`."""

STRENGTHS = (0.003, 0.01, 0.03, 0.08, 0.15, 0.3)
CHAININGS = ("parallel", "top-down", "bottom-up")
SEED = "lnr:selector=lasso,scale_invariant=false"
VARIANTS = {
    "lasso": "weights=lasso,bias=false",
    "lasso, bias": "weights=lasso,bias=true",
    "debiased": "weights=refit,bias=false",
    "debiased, bias": "weights=refit,bias=true",
}


@dataclass(frozen=True)
class Images:
    """Calibration inputs, and the images that score."""

    calibration: np.ndarray
    images: np.ndarray
    labels: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--only", choices=("recipes", "plans", "figures", "samples"), nargs="+")
    parser.add_argument("--trainings", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=TRAININGS)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"))
    arguments = parser.parse_args()
    parts = arguments.only or ("recipes", "plans", "figures")
    if "figures" in parts:
        pyplot()
    images = _images(arguments.samples)
    for network in arguments.networks:
        paths = [arguments.folder / f"{network}_seed{s}.onnx" for s in range(arguments.trainings)]
        if not all(path.exists() for path in paths):
            raise SystemExit(f"no {network} in '{arguments.folder}': train them (see above)")
        models = [canonicalise(onnx.load(path)).model for path in paths]
        before = [_error(model, images) for model in models]
        print(f"\n{network}: test error {_spread(before)} before\n")
        if {"recipes", "plans"} & set(parts):
            print("| what | parameters left | error after | rise | seconds |")
            print("|---|---|---|---|---|", flush=True)
        for steps in RECIPES[network] if "recipes" in parts else ():
            _row(_words(steps), models, before, images, lambda m, s=steps: compressed(m, s, images))
        for specs, target in BY_PLAN[network] if "plans" in parts else ():
            label = f"`{' '.join(specs)}`, target {target:g}"
            _row(
                label,
                models,
                before,
                images,
                lambda m, s=specs, t=target: _planned(m, s, t, images),
            )
        if "figures" in parts:
            _figures(network, models, before, images, arguments.figures)


def compressed(model: onnx.ModelProto, steps: Iterable[Step], images: Images) -> onnx.ModelProto:
    """Step after step, each repaired against the network that it all began with."""
    feeds = [{"image": part} for part in np.array_split(images.calibration, 64)]
    repair, kept, result = Repair(model, feeds, ONE), {}, model
    for step in steps:
        owners = [(parse_pass(spec), nodes) for spec, nodes in step.items()]
        facts = _facts(result, owners[0][0], images)
        memo = _memo(facts)
        chosen: list[Candidate[Any]] = []
        for owner, nodes in owners:
            mine = [c for c in _offers(facts, owner) if c.site.node in nodes]
            if {c.site.node for c in mine} != set(nodes):
                raise SystemExit(f"'{owner.name}' offers nothing for one of {', '.join(nodes)}")
            chosen += mine
            own = owner.kept_channels(mine, Editor(result, memo=memo))
            kept |= {t: (a, kept[t][1][i] if t in kept else i) for t, (a, i) in own.items()}
        passes = {owner.name: owner for owner, _ in owners}
        rewritten = rewrite(result, chosen, passes, strict=True, memo=memo).model
        result = repair(rewritten, kept).model
    return result


def _facts(model: onnx.ModelProto, owner: Pass[Any], images: Images) -> Facts:
    data = {"image": images.calibration}
    config = Config(passes=(owner,), data=data, execution=ONE, metric="agreement")
    found = prepare(model, config, Silent())
    assert found.inputs.calibration is not None
    shapes, inputs = found.facts.shapes(), found.inputs.calibration
    every = len(images.calibration)
    return found.facts.with_moments(CollectedMoments(model, shapes, inputs, ONE, 0, every))


def _memo(facts: Facts) -> Memo:
    memo = Memo()
    remember_facts(facts, memo)
    remember_coupling(facts, memo)
    return memo


def _offers(facts: Facts, owner: Pass[Any]) -> list[Candidate[Any]]:
    return [offers[-1] for offers in collect(facts, [owner]).sites]


def _planned(
    model: onnx.ModelProto, specs: Sequence[str], target: float, images: Images
) -> onnx.ModelProto:
    return oc.compress(
        model,
        data={"image": images.calibration},
        passes=specs,
        target={"params": target},
        max_drop=100,
        threads=1,
    ).model


def _row(
    label: str,
    models: Sequence[onnx.ModelProto],
    before: Sequence[float],
    images: Images,
    compress: Any,
) -> None:
    start, results = time.perf_counter(), []
    for model in models:
        try:
            results.append(compress(model))
        except oc.BoundError as error:
            print(f"| {label} | - | {str(error).split(' (')[0]} | - | - |", flush=True)
            return
    seconds = (time.perf_counter() - start) / len(models)
    after = [_error(result, images) for result in results]
    share = np.mean([_size(r) / _size(m) for r, m in zip(results, models, strict=True)])
    rise = np.mean(after) - np.mean(before)
    print(f"| {label} | {share:.1%} | {_spread(after)} | {rise:+.2f} | {seconds:.0f} |", flush=True)


def _words(steps: Sequence[Step]) -> str:
    parts = [(spec, nodes) for step in steps for spec, nodes in step.items()]
    return "; ".join(f"`{s.replace('metric=data,', '')}` {', '.join(n)}" for s, n in parts)


def _spread(errors: Sequence[float]) -> str:
    return f"{np.mean(errors):.2f} [{min(errors):.2f}, {max(errors):.2f}]"


def _figures(
    network: str,
    models: Sequence[onnx.ModelProto],
    before: Sequence[float],
    images: Images,
    folder: Path,
) -> None:
    """All chainings, the weights as the group lasso leaves them and debiased, over strengths."""
    print("\n| f | chaining | " + " | ".join(VARIANTS) + " |")
    print("|---|---|" + "---|" * len(VARIANTS))
    owners = {
        (f, chaining, name): parse_pass(f"{SEED},strength={f},chaining={chaining},{options}")
        for f in STRENGTHS
        for chaining in CHAININGS
        for name, options in VARIANTS.items()
    }
    points: dict[Any, list[tuple[float, float]]] = {key: [] for key in owners}
    for model in models:
        facts = _facts(model, next(iter(owners.values())), images)
        memo = _memo(facts)
        for key, owner in owners.items():
            chosen = _offers(facts, owner)
            result = rewrite(model, chosen, {"lnr": owner}, strict=True, memo=memo).model
            points[key].append((_size(result) / _size(model), _error(result, images)))
    means = {key: np.mean(found, axis=0) for key, found in points.items()}
    for f in STRENGTHS:
        for chaining in CHAININGS:
            cells = [means[f, chaining, name] for name in VARIANTS]
            text = " | ".join(f"{error:.2f} ({size:.1%})" for size, error in cells)
            print(f"| {f:g} | {chaining} | {text} |", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    base = float(np.mean(before))
    curves = {
        (chaining, name): np.array([means[f, chaining, name] for f in STRENGTHS])
        for chaining in CHAININGS
        for name in VARIANTS
    }
    by_chaining = {c: {v: curves[c, v] for v in VARIANTS} for c in CHAININGS}
    by_variant = {v: {c: curves[c, v] for c in CHAININGS} for v in VARIANTS}
    _plot(by_variant, base, network, folder / f"{network}_chainings.png")
    _plot(by_chaining, base, network, folder / f"{network}_debiasing.png")


def _plot(
    panels: Mapping[str, Mapping[str, np.ndarray]], base: float, network: str, path: Path
) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(3.1 * len(panels), 3.2), sharey=True)
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for (label, curve), marker in zip(curves.items(), "os^v", strict=False):
            axis.plot(
                100 * curve[:, 0], curve[:, 1], marker=marker, ms=5, mfc="none", lw=1, label=label
            )
        axis.axhline(base, color="grey", lw=0.8, ls="--")
        axis.set(title=title, xlabel="parameters left, %", yscale="log")
        axis.set_yticks([2, 3, 5, 10, 20, 50], labels=["2", "3", "5", "10", "20", "50"])
        axis.minorticks_off()
        axis.grid(visible=True, lw=0.3)
    axes[0].set_ylabel("test error, %")
    axes[0].legend(fontsize=8)
    figure.suptitle(f"{network}: f = {STRENGTHS[-1]:g} (left) to {STRENGTHS[0]:g}; dashed: before")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _size(model: onnx.ModelProto) -> int:
    """Numbers that the network stores; shapes (integers) do not count."""
    held = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    return sum(int(np.prod(t.dims)) for t in held)


def _error(model: onnx.ModelProto, images: Images) -> float:
    with open_session(model, ONE) as session:
        (scores, *_) = session.run({"image": images.images})
    return float((scores.argmax(axis=1) != images.labels).mean() * 100)


def _images(samples: int) -> Images:
    """Images that the networks were trained on, to calibrate; the test images, to score."""
    train, test = (np.load(MNIST / f"mnist_{part}.npz") for part in ("train", "test"))
    rows = np.arange(len(train["y"]))
    fit, _ = train_test_split(rows, train_size=50_000, stratify=train["y"], random_state=0)
    drawn = np.random.default_rng(0).permutation(np.sort(fit))[:samples]
    return Images(_scaled(train["x"][np.sort(drawn)]), _scaled(test["x"]), test["y"])


def _scaled(pixels: np.ndarray) -> np.ndarray:
    return np.asarray((pixels.astype(np.float32)[:, None] / 255 - 0.1307) / 0.3081, np.float32)


if __name__ == "__main__":
    main()
