"""Ablation in networks without classes: half the squared distance to their own outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

TAPS = {"a": 1, "b": 1, "t": 3, "u": 1, "v": 3}
ABLATIONS: list[dict[str, tuple[int, ...]]] = [
    *({"a": (channel,)} for channel in range(3)),
    {"b": (0, 2)},
    {"t": (1,)},
    {"u": (2,)},
    {"t": (0,), "u": (1, 0)},
    {"a": (1,), "t": (2,)},
    {"v": (1,)},
]


def flat(values: Any) -> np.ndarray:
    return np.asarray(values, np.float64).reshape(len(values), -1)


def expected(
    truth: Any,
    kit: Any,
    model: onnx.ModelProto,
    original: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    ablations: Sequence[Mapping[str, tuple[int, ...]]] = ABLATIONS,
) -> list[float]:
    """Masks behind the taps of the whole network, sample by sample; relative to the original."""
    taps = tuple(TAPS)
    answers = [flat(values) for values in kit.run(original, feeds)]
    copy = truth.stepped(model, taps)
    widths = {"a": 3, "b": 3, "t": 3, "u": 3, "v": 3}
    for tensor in model.graph.initializer:
        if tensor.name == "w2":
            widths = dict.fromkeys(("a", "b", "t", "u"), tensor.dims[0]) | {"v": tensor.dims[1]}

    def loss(ablation: Mapping[str, tuple[int, ...]]) -> float:
        masks = {f"by_{tap}": np.ones(1, np.float32) for tap in taps}
        for tap, channels in ablation.items():
            mask = np.ones(widths[tap], np.float32)
            mask[list(channels)] = 0.0
            masks[f"by_{tap}"] = mask.reshape((-1, 1, 1) if TAPS[tap] == 1 else (1, 1, -1))
        found = [flat(values) for values in kit.run(copy, {**feeds, **masks})]
        total = 0.0
        for moved, answer in zip(found, answers, strict=True):
            for row, own in zip(moved, answer, strict=True):
                total += 0.5 * float(((row - own) ** 2).sum() / (own**2).sum())
        return total / len(answers[0])

    base = loss({})
    return [loss(ablation) - base for ablation in ablations]


@pytest.mark.parametrize("equal", [False, True], ids=["distinct", "equal"])
@pytest.mark.parametrize(("batch", "count"), [("N", 5), (1, 3), (3, 3)])
def test_whole_networks(
    truth: Any, nets: Any, kit: Any, batch: Any, count: int, *, equal: bool
) -> None:
    model = truth.several(nets, batch=batch, equal=equal)
    measured = truth.measured(model, nets.samples(model, count))
    found = measured.sensitivity.ablate(TAPS, ABLATIONS)
    free = truth.several(nets, equal=equal)
    # Squares of float32 differences, relative to the energy: 1e-6 of what they are.
    np.testing.assert_allclose(
        found, expected(truth, kit, free, free, measured.feeds), rtol=1e-5, atol=1e-7
    )
    assert found.min() > 1e-4


def test_an_output_that_something_in_front_of_it_changes_too(
    truth: Any, nets: Any, kit: Any
) -> None:
    """One tap is an output, and behind another tap: both are set to zero."""
    model = truth.several(nets)
    measured = truth.measured(model, nets.samples(model, 4))
    ablations = [{"a": (1,), "u": (0,)}, {"t": (1,), "v": (0,)}]
    found = measured.sensitivity.ablate(TAPS, ablations)
    truly = expected(truth, kit, model, model, measured.feeds, ablations)
    np.testing.assert_allclose(found, truly, rtol=1e-5, atol=1e-7)


def test_a_variant_is_held_to_the_answers_of_the_network_itself(
    truth: Any, nets: Any, kit: Any
) -> None:
    model = truth.several(nets)
    variant = truth.changed(model, size=0.1)
    measured = truth.measured(model, nets.samples(model, 4))
    found = measured.sensitivity.ablate(TAPS, ABLATIONS, variant)
    truly = expected(truth, kit, variant, model, measured.feeds)
    np.testing.assert_allclose(found, truly, rtol=1e-5, atol=1e-6)


def test_the_comparison_sees_a_fault(
    truth: Any, nets: Any, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = truth.several(nets)
    measured = truth.measured(model, nets.samples(model, 4))
    energies = measured.targets.energies
    mixed = {name: np.roll(values, 1) for name, values in energies.items()}
    monkeypatch.setitem(vars(measured.targets), "energies", mixed)
    found = measured.sensitivity.ablate(TAPS, ABLATIONS)
    truly = expected(truth, kit, model, model, measured.feeds)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found, truly, rtol=1e-5, atol=1e-7)
