"""Trials look at calibration inputs that their repair does not see, and at as many as there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress import trial as module
from onnxcompress.config import Config
from onnxcompress.errors import PassError
from onnxcompress.graph.editor import Editor
from onnxcompress.pipeline import run
from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.options import collect
from onnxcompress.plan.registry import parse_pass
from onnxcompress.preparation import prepare
from onnxcompress.progress import Silent
from onnxcompress.rewrite import mender
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.runtime import Execution
from onnxcompress.workbench import Workbench


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


def bench_of(model: onnx.ModelProto) -> Workbench:
    x = np.random.default_rng(1).standard_normal((64, 3, 8, 8)).astype(np.float32)
    passes = (parse_pass("tucker2:round_to=2"),)
    config = Config(passes=passes, execution=Execution(threads=1), data={"x": x})
    return Workbench.of(prepare(model, config, Silent()), Silent())


def offers(bench: Workbench) -> list[Candidate[Any]]:
    owners = list(bench.passes.values())
    return [site[-1] for site in collect(bench.prepared.facts, owners).sites]


def test_probes_find_what_one_by_one_is_found(two_blocks: onnx.ModelProto) -> None:
    """However many are under way, each answer is that of its own candidate."""
    bench = bench_of(two_blocks)
    with bench.trial.probing() as probe:
        answers = [probe(candidate) for candidate in offers(bench)]
        found = [answer() for answer in answers]
    expected = []
    for candidate in offers(bench):
        model = rewrite(bench.trial.model, (candidate,), bench.passes, memo=bench.memo).model
        expected.append(bench.trial.error(model, module._PROBE))
    assert len(found) > 2
    assert len(set(found)) == len(found)
    assert found == expected


def test_a_probe_that_fails_names_the_pass(
    two_blocks: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(two_blocks)
    chosen = offers(bench)[0]

    def broken(_: Any, candidate: Candidate[Any], edit: Editor) -> None:
        node = edit.node(candidate.site.node)
        edit.set_input(node, 1, edit.constant("wrong", np.zeros((3, 5, 3, 3), np.float32)))

    monkeypatch.setattr(type(bench.passes["tucker2"]), "rewrite", broken)
    with bench.trial.probing() as probe:
        answer = probe(chosen)
        with pytest.raises(PassError, match=f"pass 'tucker2' at node '{chosen.site.node}'"):
            answer()
