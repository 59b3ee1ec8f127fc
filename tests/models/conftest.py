"""Cards of networks for grey 28x28 images, held to what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.calibrate.preprocess_text import parse_preprocess
from onnxcompress.calibrate.spec import load_dataset
from onnxcompress.embedded import embedded


@pytest.fixture(scope="session")
def hold_to_card() -> Callable[..., None]:
    """`hold_to_card(network, session, file, mean=, deviation=)`: right answers, preprocessing."""
    return _hold_to_card


def _hold_to_card(
    network: str,
    session: onnxruntime.InferenceSession,
    file: Path,
    *,
    mean: float,
    deviation: float,
) -> None:
    path = embedded(network)
    found = re.search(r"--preprocess '([^']+)'", path.with_suffix(".md").read_text("utf-8"))
    assert found is not None
    manifest = path.with_name("manifest.json").read_text(encoding="utf-8")
    entry: dict[str, Any] = json.loads(manifest)["files"][path.name]
    assert entry["test_total"] == 10_000
    image = InputSpec("image", np.dtype(np.float32), ("N", 1, 28, 28))
    dataset = load_dataset(str(file), (image,), preprocess=parse_preprocess(found[1]))
    correct = 0
    for feeds, labels in dataset.batches(500):
        (logits,) = session.run(["logits"], feeds)
        correct += int((logits.argmax(axis=1) == labels).sum())
    # Another CPU sums in another order. Its logits differ by some 1e-5, which tips an image or none
    # of ten thousand; a few are allowed for kernels of lower precision.
    assert abs(correct - entry["test_correct"]) <= 5
    with np.load(file) as archive:
        pixels = archive["x"][[9999, 3]].astype(np.float64)
    ((feeds, _),) = dataset.take([9999, 3]).batches(2)
    expected = ((pixels / 255 - mean) / deviation)[:, None]
    np.testing.assert_allclose(feeds["image"], expected, rtol=2**-24, atol=1e-12)
