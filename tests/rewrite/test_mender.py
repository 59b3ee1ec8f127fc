"""Repair as jobs see it: whether it happens, and what it does for the outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.memo import Memo
from onnxcompress.plan.channels.remove import remove_channels
from onnxcompress.plan.contract import Candidate, Site
from onnxcompress.rewrite import mender as module
from onnxcompress.rewrite.mender import Mender
from onnxcompress.runtime import Execution
from onnxcompress_passes.prune import Prune


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("repair", ["refit", "scale"])
def test_jobs_come_closer_with_repair(nets: Any, bench: Any, kit: Any, repair: str) -> None:
    model = bench.chain(nets, 12, 16)
    feeds = nets.samples(model, 200)

    def made(method: str) -> Any:
        return oc.compress(
            model,
            data=feeds,
            passes=["prune:channels=0.5"],
            gate=False,
            repair=method,
            max_drop=100.0,
            min_snr=-100.0,
            threads=1,
        )

    off, on = made("off"), made(repair)
    assert off.report["repair"] is None
    assert on.report["repair"]["method"] == repair
    layers = on.report["repair"]["layers"]
    assert any(one["error_after"] < one["error_before"] for one in layers)
    fresh = nets.samples(model, 200, seed=9)
    assert bench.relative(kit, model, on.model, fresh) < 0.9 * bench.relative(
        kit, model, off.model, fresh
    )
    assert on.model.SerializeToString() == made(repair).model.SerializeToString()


@pytest.mark.parametrize(
    ("damage", "data", "method", "repairs"),
    [
        (0.1, True, "refit", True),
        (0.1, True, "scale", True),
        (0.0, True, "refit", False),
        (0.1, False, "refit", False),
        (0.1, True, "off", False),
    ],
)
def test_when_a_job_repairs(
    nets: Any, bench: Any, *, damage: float, data: bool, method: str, repairs: bool
) -> None:
    """Nothing where nothing was lossy, where there is no data, and where it is switched off."""
    model = bench.chain(nets, 6, 4)
    feeds = nets.samples(model, 30)
    facts = nets.facts(model, feeds)
    given = dataset_from_arrays(feeds, input_specs(model)) if data else None
    owner = Prune(round_to=1, branches=False)
    site = Site("prune", "one")
    narrow = next(
        c for c in owner.candidates(site, facts) if c.damage > 0 and len(c.setting.kept) < 6
    )
    candidate = Candidate(site, narrow.setting, narrow.touches, Cost(), Cost(), damage)
    mender = Mender(facts, given, {"prune": owner}, Memo(), Execution(threads=1), 0, method)
    coupling = facts.coupling()
    gone = {"one": tuple(sorted(set(range(6)) - set(narrow.setting.kept)))}
    result = remove_channels(model, coupling, gone)
    found = mender(result, [candidate])
    assert (found is not None) == repairs
    if found is not None:
        assert {m.node for m in found.mended} == {"one", "two", "fc"}
        assert mender.samples == 30
        assert mender(result, [candidate], briefly=True) is not None


@pytest.mark.parametrize(("most", "expected"), [(2**24, [0, 1, 2]), (2 * 3 * 10, [0, 1]), (1, [0])])
def test_how_much_a_trial_looks_at(
    monkeypatch: pytest.MonkeyPatch, most: int, expected: list[int]
) -> None:
    """A quarter of 13 batches, unless they are large; never nothing."""
    monkeypatch.setattr(module, "_BRIEF_ELEMENTS", most)
    feeds = [{"x": np.full((3, 10), at)} for at in range(13)]
    assert [int(batch["x"][0, 0]) for batch in module._few(feeds)] == expected
    assert len(module._few(feeds[:2])) == 1
