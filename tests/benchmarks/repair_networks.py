"""Repair on networks for photographs: accuracy or output SNR against MACs, with and without.

    python tests/benchmarks/repair_networks.py [--part classifiers signals] [--nets ...]

`classifiers`: SqueezeNet and MobileNet-V2 on `imagenet_samples`, cross-fitted: calibrated on one
half of the images without labels, scored on the other, and swapped; onnxsim's Wanda beside it.
`signals`: networks that make no class decision, at MACs 0.8, on photographs; judged on others than
those calibrated on. Passes that decide on weights alone, and passes that look at the data, each
with one plan, carried out with repair and without. Needs the shared folder (ONNXCOMPRESS_DATA,
default ../shared).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFont

import onnxcompress as oc
from onnxcompress.runtime import open_session

SHARED = Path(os.environ.get("ONNXCOMPRESS_DATA", "../shared"))
LOW_RANK_BY_WEIGHTS = ["tucker2:metric=weights", "svd:metric=weights"]
PASSES = ["lnr:branches=false", "tucker2", "svd"]
FAMILIES = {
    "weights": ["prune:criterion=weight,branches=false", *LOW_RANK_BY_WEIGHTS],
    "data": PASSES,
}
CLASSIFIERS = {
    "squeezenet1.1_fp16w_imagenet": ("bgr", 227, (104.0, 117.0, 123.0), (1.0, 1.0, 1.0), 0),
    "mobilenet_v2_1.0_224_dq": ("rgb", 224, (127.5,) * 3, (127.5,) * 3, 1),
}
SIGNALS = {
    "yolox_nano_coco": ("bgr", (416, 416), 0.0, 1.0),
    "deeplabv3_mnv2_pascal_dq": ("rgb", (513, 513), 127.5, 127.5),
    "super_resolution_espcn": ("gray", (224, 224), 0.0, 255.0),
    "text_detection_ch_ppocrv3": ("words", (320, 320), 116.0, 57.0),
    "ultraface_RFB_320": ("rgb", (240, 320), 127.0, 128.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"classifiers": classifiers, "signals": signals}
    parser.add_argument("--part", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--nets", nargs="+", help="only these networks")
    parser.add_argument("--macs", type=float, nargs="+", default=[0.9, 0.75, 0.6])
    parser.add_argument("--unrepaired", type=float, nargs="*", default=[0.75])
    parser.add_argument("--samples", type=int, default=256)
    arguments = parser.parse_args()
    for part in arguments.part:
        parts[part](arguments)


def classifiers(arguments: argparse.Namespace) -> None:
    """Accuracy against MACs, both halves pooled."""
    print("| net | method | MACs | parameters | top-1 of 1,000 | seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    for net, (order, size, mean, deviation, first) in CLASSIFIERS.items():
        if arguments.nets and net not in arguments.nets:
            continue
        model = onnx.load(SHARED / "models" / f"{net}.onnx")
        name = model.graph.input[0].name
        labels = np.arange(1000) + first
        images = np.stack([photograph(n, order, (size, size)) for n in range(1000)])
        images = (images - np.float32(mean)[:, None, None]) / np.float32(deviation)[:, None, None]
        halves = [np.arange(0, 1000, 2), np.arange(1, 1000, 2)]
        whole = cost(model, images[:1])
        right = (answers(model, images).argmax(axis=1) == labels).sum()
        print(f"| {net} | original | 1.000 | 1.000 | {right / 10:.1f} | |", flush=True)

        def ours(rows: np.ndarray, macs: float, repair: str, m=model, i=images, n=name) -> Any:
            return oc.compress(
                m,
                data={n: i[rows]},
                passes=PASSES,
                target={"macs": macs},
                max_drop=100,
                samples=arguments.samples,
                repair=repair,
            ).model

        def theirs(rows: np.ndarray, sparsity: float, _: str, m=model, i=images, n=name) -> Any:
            import onnxsim

            calibration = [{n: i[rows[k : k + 50]]} for k in range(0, 200, 50)]
            return onnxsim.apply_structured_wanda_pruning(
                m,
                calibration_data=calibration,
                sparsity=sparsity,
                providers=["CPUExecutionProvider"],
            )

        jobs = [(f"ours, macs={m}", ours, m, "refit") for m in arguments.macs]
        jobs += [(f"ours, macs={m}, no repair", ours, m, "off") for m in arguments.unrepaired]
        jobs += [(f"onnxsim Wanda, sparsity {s}", theirs, s, "") for s in (0.05, 0.125, 0.25)]
        for label, make, level, repair in jobs:
            start, hits, costs = time.perf_counter(), 0, []
            try:
                for fit, score in (halves, halves[::-1]):
                    made = make(fit, level, repair)
                    hits += (answers(made, images[score]).argmax(axis=1) == labels[score]).sum()
                    costs.append(cost(made, images[:1]))
            except Exception as error:  # noqa: BLE001  (a peer's failure is a row of the table)
                print(f"| {net} | {label} | failed: {str(error)[:90]} | | | |", flush=True)
                continue
            macs, parameters = np.mean(costs, axis=0) / np.array(whole)
            seconds = (time.perf_counter() - start) / 2
            print(
                f"| {net} | {label} | {macs:.3f} | {parameters:.3f} | {hits / 10:.1f} | "
                f"{seconds:.0f} |",
                flush=True,
            )


def signals(arguments: argparse.Namespace) -> None:
    """Output SNR at MACs 0.8, of the worst output, with and without repair."""
    print("| net | passes decide by | MACs | SNR without repair | with | gain | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    gains: dict[str, list[float]] = {}
    for net in SIGNALS:
        if net == "ultraface_RFB_320" or (arguments.nets and net not in arguments.nets):
            continue
        model, fitted, judged = signal(net, arguments.samples)
        for by, passes in FAMILIES.items():
            start = time.perf_counter()
            off, on, macs = with_and_without(model, passes, fitted, judged, arguments.samples)
            gains.setdefault(by, []).append(on - off)
            print(
                f"| {net} | {by} | {macs:.3f} | {off:.1f} dB | {on:.1f} dB | {on - off:+.1f} dB | "
                f"{time.perf_counter() - start:.0f} |",
                flush=True,
            )
    for by, found in gains.items():
        print(f"mean gain, passes by {by}: {np.mean(found):.1f} dB", flush=True)


def with_and_without(
    model: onnx.ModelProto,
    passes: list[str],
    fitted: dict[str, Any],
    judged: dict[str, Any],
    samples: int,
) -> tuple[float, float, float]:
    """(SNR without repair, with it, MACs left): one plan, carried out twice."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        for repair in ("refit", "off"):
            result = oc.compress(
                model,
                data=fitted,
                eval_data=judged,
                passes=() if plan.exists() else passes,
                plan=plan if plan.exists() else None,
                target={"macs": 0.8},
                min_snr=-100.0,
                samples=samples,
                repair=repair,
                **shape_of(model, fitted),
            )
            plan.write_text(result.plan.to_json())
            found[repair] = worst(result)
    return found["off"], found["refit"], result.report["remaining"]["macs"]


def signal(net: str, count: int) -> tuple[onnx.ModelProto, dict[str, Any], dict[str, Any]]:
    """A network, its calibration inputs, and other inputs to judge by."""
    order, size, mean, deviation = SIGNALS[net]
    model = onnx.load(SHARED / "models" / f"{net}.onnx")
    name = model.graph.input[0].name
    rows = np.random.default_rng(0).permutation(1000)
    images = np.stack([photograph(n, order, size) for n in rows[: count + 40]])
    images = ((images - mean) / deviation).astype(np.float32)
    return model, {name: images[:count]}, {name: images[count:]}


def worst(result: Any) -> float:
    return float(min(output["snr_db"] for output in result.report["fidelity"]["outputs"]))


def shape_of(model: onnx.ModelProto, fitted: dict[str, Any]) -> dict[str, Any]:
    """The size of a dynamic input."""
    return {"shapes": {name: (1, *values.shape[1:]) for name, values in fitted.items()}}


def photograph(number: int, order: str, size: tuple[int, int]) -> np.ndarray:
    """One of the images [C, H, W], 0 to 255; `words` is BGR with some words written across."""
    (path,) = (SHARED / "data" / "imagenet_samples" / f"{number:03d}").iterdir()
    with Image.open(path) as image:
        mode = "L" if order == "gray" else "RGB"
        small = image.convert(mode).resize(size[::-1], Image.Resampling.BILINEAR)
    if order == "words":
        write(small, np.random.default_rng(number))
    pixels = np.asarray(small, dtype=np.float32)
    if order == "gray":
        return pixels[np.newaxis]
    return (pixels if order == "rgb" else pixels[:, :, ::-1]).transpose(2, 0, 1)


def write(image: Image.Image, chance: np.random.Generator) -> None:
    """Some words, here and there: a text detector answers nothing where there is no text."""
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        word = "".join(chance.choice(list("abcdefghijklmnopqrstuvwxyz"), chance.integers(3, 10)))
        place = tuple(int(v) for v in chance.integers(0, np.array(image.size) * 3 // 4))
        ink = tuple(int(v) for v in chance.integers(0, 256, 3))
        draw.text(place, word, fill=ink, font=ImageFont.load_default(int(chance.integers(18, 44))))


def answers(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    del fresh.graph.value_info[:]
    with open_session(fresh) as session:
        name = session.input_names[0]
        found = [session.run({name: images[k : k + 20]})[0] for k in range(0, len(images), 20)]
    return np.concatenate(found).reshape(len(images), -1)


def cost(model: onnx.ModelProto, image: np.ndarray) -> tuple[int, int]:
    from onnxcompress.analyse.shapes import shapes_for
    from onnxcompress.graph.cost import model_cost
    from onnxcompress.load.canonical import canonicalise

    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    del fresh.graph.value_info[:]
    plain = canonicalise(fresh).model
    counted = model_cost(plain, shapes_for(plain, {plain.graph.input[0].name: image.shape}))
    return counted.macs, counted.params


if __name__ == "__main__":
    main()
