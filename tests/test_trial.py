"""Trials look at calibration inputs that their repair does not see, and at as many as there are."""

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
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[set[float]]]:
    """What is looked at: by trials, and by one repair after the other; first pixels."""
    found: dict[str, list[set[float]]] = {"trials": [set()], "repair": []}
    compare, drawn = module.compare, mender.drawn_feeds

    def compared(original: Any, candidate: Any, data: Any, *rest: Any, **options: Any) -> Any:
        for feeds, _ in data.batches(64):
            found["trials"][0].update(feeds["x"][:, 0, 0, 0].tolist())
        return compare(original, candidate, data, *rest, **options)

    def fed(*arguments: Any) -> Any:
        feeds = drawn(*arguments)
        found["repair"].append({x for b in feeds for x in b["x"][:, 0, 0, 0].tolist()})
        return feeds

    monkeypatch.setattr(module, "compare", compared)
    monkeypatch.setattr(mender, "drawn_feeds", fed)
    return found


@pytest.mark.parametrize(
    ("count", "asked", "tried", "fitted"),
    [
        (40, 1024, 10, [30, 40]),
        # Between what a trial looks at at most and twice as many.
        (500, 1024, 125, [375, 500]),
        (1600, 1024, 512, [1024]),
        (500, 60, 440, [60]),
    ],
)
def test_apart(
    two_blocks: onnx.ModelProto,
    seen: dict[str, list[set[float]]],
    count: int,
    asked: int,
    tried: int,
    fitted: list[int],
) -> None:
    """What repairs the result after the trials sees what they had for themselves, too."""
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
    (trials,) = seen["trials"]
    assert len(trials) == tried
    assert [len(one) for one in seen["repair"]] == fitted
    assert not trials & seen["repair"][0]
    assert trials | seen["repair"][-1] <= set(x[:, 0, 0, 0].tolist())
