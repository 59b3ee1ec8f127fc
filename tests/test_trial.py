"""Trials look at calibration inputs that repair does not see, and at as many as there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress import trial as module
from onnxcompress.config import Config
from onnxcompress.pipeline import run
from onnxcompress.plan.registry import parse_pass
from onnxcompress.rewrite import mender
from onnxcompress.runtime import Execution


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[float]]:
    """What is looked at: by trials (probes are shorter), and by repair; first pixels."""
    found: dict[str, set[float]] = {"trials": set(), "repair": set()}
    compare, drawn = module.compare, mender.drawn_feeds

    def compared(original: Any, candidate: Any, data: Any, *rest: Any, **options: Any) -> Any:
        for feeds, _ in data.batches(64):
            found["trials"].update(feeds["x"][:, 0, 0, 0].tolist())
        return compare(original, candidate, data, *rest, **options)

    def fed(*arguments: Any) -> Any:
        feeds = drawn(*arguments)
        for batch in feeds:
            found["repair"].update(batch["x"][:, 0, 0, 0].tolist())
        return feeds

    monkeypatch.setattr(module, "compare", compared)
    monkeypatch.setattr(mender, "drawn_feeds", fed)
    return found


@pytest.mark.parametrize(
    ("count", "asked", "tried", "fitted"),
    [
        (4, 1024, 1, 3),
        (40, 1024, 10, 30),
        # Between what a trial looks at at most and twice as many.
        (500, 1024, 125, 375),
        (1600, 1024, 512, 1024),
        (500, 60, 440, 60),
    ],
)
def test_apart(
    two_blocks: onnx.ModelProto,
    seen: dict[str, set[float]],
    count: int,
    asked: int,
    tried: int,
    fitted: int,
) -> None:
    x = np.random.default_rng(1).standard_normal((count, 3, 8, 8)).astype(np.float32)
    config = Config(
        passes=(parse_pass("lnr:channels=0.5"),),
        execution=Execution(threads=1),
        gate=False,
        max_drop=100.0,
        min_snr=-100.0,
        data={"x": x},
        eval_data={"x": x[:4]},
        samples=asked,
    )
    run(two_blocks, config)
    assert {name: len(values) for name, values in seen.items()} == {
        "trials": tried,
        "repair": fitted,
    }
    assert not seen["trials"] & seen["repair"]
    every = set(x[:, 0, 0, 0].tolist())
    assert seen["trials"] | seen["repair"] <= every
