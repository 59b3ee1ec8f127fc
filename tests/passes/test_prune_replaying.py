"""Plans of `prune`: replayed, in any order, once."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.errors import ModelError, PassError, UsageError
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editor import Editor
from onnxcompress.plan.contract import Candidate, Site, candidate_from_dict
from onnxcompress_passes.prune import Prune
from onnxcompress_passes.prune_setting import KeptChannels


def octets(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", ["residual", "concat"])
def test_replayed_from_the_plan_file(pruning: Any, nets: Any, name: str) -> None:
    """Candidates survive JSON, and their rewrite needs nothing else."""
    facts = nets.facts(pruning.graph(name))
    for candidates in pruning.offers(Prune(), facts).values():
        for candidate in candidates:
            text = json.dumps(candidate.to_dict(), allow_nan=False)
            again = candidate_from_dict(json.loads(text), Prune())
            assert again.setting == candidate.setting
            assert octets(pruning.applied(facts.model, again)) == octets(
                pruning.applied(facts.model, candidate)
            )


@pytest.mark.parametrize("name", ["chain", "residual", "concat"])
def test_groups_in_any_order(pruning: Any, nets: Any, kit: Any, name: str) -> None:
    """The same bytes, and as many channels as each group has by itself."""
    facts = nets.facts(pruning.graph(name))
    chosen = [candidates[-1] for candidates in pruning.offers(Prune(), facts).values()]
    assert len(chosen) == 2
    results = {
        octets(pruning.applied(facts.model, *order)) for order in itertools.permutations(chosen)
    }
    assert len(results) == 1
    (both,) = results
    model = onnx.load_model_from_string(both)
    onnx.checker.check_model(model, full_check=True)
    for candidate in chosen:
        weight = next(n for n in model.graph.node if n.name == candidate.site.node).input[1]
        (dims,) = (tuple(t.dims) for t in model.graph.initializer if t.name == weight)
        assert dims[0] == len(candidate.setting.kept)
    feeds = nets.samples(model, 2)
    (alone,), (found,) = (
        kit.run(pruning.applied(facts.model, chosen[0]), feeds),
        kit.run(model, feeds),
    )
    assert alone.shape == found.shape
    assert not np.allclose(alone, found)


def test_a_graph_is_pruned_once(pruning: Any, nets: Any) -> None:
    """Channel numbers count on the original."""
    facts = nets.facts(pruning.chain())
    first, second = (candidates[-1] for candidates in pruning.offers(Prune(), facts).values())
    edit = Editor(facts.model)
    Prune().rewrite(first, edit)
    with pytest.raises(ModelError, match="already"):
        Prune().rewrite(second, edit)


def test_channels_that_are_not_there(pruning: Any, nets: Any) -> None:
    facts = nets.facts(pruning.chain())

    def kept(node: str, *channels: int) -> Candidate[KeptChannels]:
        return Candidate(Site("prune", node), KeptChannels(channels), (node,), Cost(), Cost(), 0.0)

    for candidate, words in (
        (kept("one", 0, 12), "12 channels, not 12"),
        (kept("one", -1), "12 channels, not -1"),
        (kept("fc", 0), "'fc'"),
        (kept("nowhere", 0), "'nowhere'"),
    ):
        with pytest.raises(PassError, match=words):
            Prune().rewrite(candidate, Editor(facts.model))


def test_a_mean_that_fits_no_branch(pruning: Any, nets: Any) -> None:
    facts = nets.facts(pruning.graph("residual"))
    for node, mean in (("sum", (0.5,) * 11), ("stem", (0.5,) * 12)):
        candidate = Candidate(
            Site("prune", node), KeptChannels((), mean), (node,), Cost(), Cost(), 0.0
        )
        with pytest.raises(PassError, match=f"no residual branch.*'{node}'"):
            Prune().rewrite(candidate, Editor(facts.model))


def test_activations_are_asked_for(pruning: Any, nets: Any) -> None:
    facts = nets.facts(pruning.chain())
    for criterion in ("activation-mean", "activation-std", "apoz"):
        owner = Prune(criterion)
        with pytest.raises(UsageError, match="--data"):
            pruning.offers(owner, facts)
