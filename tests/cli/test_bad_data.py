"""Data that cannot be read or does not fit the model: exit code 4; a provider that is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

GOOD = np.random.default_rng(0).standard_normal((40, 3, 6, 7)).astype(np.float32)


def with_nan() -> np.ndarray:
    values = GOOD.copy()
    values[37, 2, 5, 6] = np.nan
    return values


ARRAYS: dict[str, dict[str, Any]] = {
    "another input name": {"image": GOOD},
    "an input too many": {"x": GOOD, "mask": GOOD},
    "no inputs": {"y": np.zeros(40, np.int64)},
    "channels last": {"x": np.moveaxis(GOOD, 1, -1)},
    "height and width exchanged": {"x": np.swapaxes(GOOD, 2, 3)},
    "no batch": {"x": GOOD[0]},
    "no sample": {"x": GOOD[:0]},
    "one sample": {"x": GOOD[:1]},
    "uint8": {"x": (GOOD * 40 + 128).clip(0, 255).astype(np.uint8)},
    "integers": {"x": GOOD.astype(np.int64)},
    "NaN": {"x": with_nan()},
    "pickled": {"x": np.array([GOOD, None], dtype=object)},
    "too few labels": {"x": GOOD, "y": np.zeros(39, np.int64)},
    "labels that are no classes": {"x": GOOD, "y": np.full(40, 5)},
    "negative labels": {"x": GOOD, "y": np.full(40, -1)},
    "labels in fractions": {"x": GOOD, "y": np.zeros(40)},
}


@pytest.mark.parametrize("arrays", ARRAYS.values(), ids=ARRAYS.keys())
@pytest.mark.parametrize("option", ["--data", "--eval"])
def test_arrays(
    refuse: Callable[..., Any], model: Path, option: str, arrays: dict[str, Any]
) -> None:
    if option == "--eval" and len(arrays.get("x", GOOD)) == 1:
        pytest.skip("one sample is enough for a verdict")
    path = model.with_name("data.npz")
    np.savez(path, **arrays)
    metric = ["--metric", "top1"] if "y" in arrays else []
    out = model.with_name("out.onnx")
    refuse(4, "compress", model, out, "--gate", "off", option, path, *metric, words=["data.npz"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but no archive", b"\x93NUMPY", b"text"])
@pytest.mark.parametrize("name", ["data.npz", "data.npy", "data.csv"])
def test_files(refuse: Callable[..., Any], model: Path, name: str, content: bytes) -> None:
    path = model.with_name(name)
    path.write_bytes(content)
    refuse(4, "compress", model, model.with_name("out.onnx"), "--data", path, words=[name])


@pytest.mark.parametrize("spec", ["nowhere.npz", "no_such_module:batches", "", "os:no_such"])
@pytest.mark.parametrize("option", ["--data", "--eval"])
def test_nothing_there(refuse: Callable[..., Any], model: Path, option: str, spec: str) -> None:
    refuse(4, "compress", model, model.with_name("out.onnx"), option, spec, words=[option])


BODIES = [
    "raise RuntimeError('a message\\nof two lines')",
    "raise SystemExit(0)",
    "yield 7",
    "yield {'x': 'text'}",
    "yield {'image': 1}",
    "return",
]


@pytest.mark.parametrize("body", BODIES)
def test_functions_that_fail(
    refuse: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    name = f"failing_loader_{BODIES.index(body)}"
    model.with_name(f"{name}.py").write_text(f"def batches():\n    {body}\n    yield {{}}\n")
    monkeypatch.chdir(model.parent)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    out = model.with_name("out.onnx")
    refuse(4, "compress", model, out, "--data", f"{name}:batches", words=[f"{name}:batches"])


def test_metric_that_needs_labels(refuse: Callable[..., Any], model: Path, samples: Path) -> None:
    options = ["--gate", "off", "--metric", "top1", "--data", samples]
    words = ["top1", "labels", "--metric agreement"]
    refuse(4, "compress", model, model.with_name("out.onnx"), *options, words=words)


def test_metric_that_needs_labels_of_the_evaluation_data(
    refuse: Callable[..., Any], model: Path, samples: Path
) -> None:
    """Labels for choosing are no labels for the verdict."""
    labelled = model.with_name("labelled.npz")
    np.savez(labelled, x=GOOD, y=np.zeros(40, np.int64))
    options = ["--gate", "off", "--metric", "top1", "--data", labelled, "--eval", samples]
    refuse(4, "compress", model, model.with_name("out.onnx"), *options, words=["samples.npz"])


def test_metric_function_that_fails(
    refuse: Callable[..., Any],
    model: Path,
    samples: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model.with_name("judge.py").write_text("def score(outputs, labels):\n    return outputs['z']\n")
    monkeypatch.syspath_prepend(model.parent)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    options = ["--gate", "off", "--metric", "judge:score", "--data", samples]
    refuse(4, "compress", model, model.with_name("out.onnx"), *options, words=["judge:score"])


@pytest.mark.parametrize("text", ["scale=0/0", "colour=rgb", "mean", "nowhere.yaml"])
def test_preprocessing(refuse: Callable[..., Any], model: Path, samples: Path, text: str) -> None:
    options = ["--data", samples, "--preprocess", text]
    refuse(2, "compress", model, model.with_name("out.onnx"), *options)


def test_evaluate(refuse: Callable[..., Any], model: Path, samples: Path) -> None:
    refuse(4, "evaluate", model, "--data", "nowhere.npz", words=["nowhere.npz"])
    refuse(4, "evaluate", model, "--data", samples, "--metric", "top1", words=["labels"])
    refuse(2, "evaluate", model, "--data", samples, words=["reference"])
    refuse(2, "evaluate", model, words=["--data"])


def without_cuda() -> bool:
    return "CUDAExecutionProvider" not in onnxruntime.get_available_providers() or not any(
        "CUDA" in device.ep_name for device in onnxruntime.get_ep_devices()
    )


@pytest.mark.skipif(not without_cuda(), reason="there is a CUDA device")
@pytest.mark.parametrize("providers", ["cuda", "cuda,cpu"])
@pytest.mark.parametrize("command", ["compress", "bench", "evaluate"])
def test_missing_cuda(
    refuse: Callable[..., Any],
    model: Path,
    samples: Path,
    providers: str,
    command: str,
) -> None:
    rest: list[str | Path] = {
        "compress": [model.with_name("out.onnx")],
        "bench": [],
        "evaluate": ["--data", samples, "--reference", model],
    }[command]
    refuse(5, command, model, *rest, "--providers", providers, words=["CUDA"])


def test_a_session_that_falls_back_in_silence(
    refuse: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where ONNX Runtime claims to have CUDA: the session itself is asked."""
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    genuine = onnxruntime.InferenceSession

    def fallen(source: Any, options: Any, providers: Any) -> Any:
        return genuine(source, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", fallen)
    out = model.with_name("out.onnx")
    refuse(5, "compress", model, out, "--providers", "cuda", words=["CUDA", "CPU"])
    refuse(5, "compress", model, out, "--providers", "cuda,cpu", words=["CUDA", "CPU"])
