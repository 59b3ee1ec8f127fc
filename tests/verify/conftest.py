"""What tests of metrics, of one network and of two share: class scores, and a user's metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from onnxcompress.verify.metrics import Metric


@pytest.fixture(scope="session")
def one_hot() -> Callable[..., np.ndarray]:
    """Class scores [N, k] whose largest is at `classes`."""

    def make(classes: Sequence[int], k: int) -> np.ndarray:
        return np.eye(k, dtype=np.float32)[np.asarray(classes)]

    return make


@pytest.fixture(scope="session")
def handed_through() -> Metric:
    """A user's metric whose scores are the output 'y' itself."""

    def output_itself(outputs: dict[str, np.ndarray], labels: Any) -> np.ndarray:
        return outputs["y"]

    return Metric("m:f", output_itself)
