"""Combinations worth building: all of them where they can be listed, else by an evolving sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxcompress.errors import BoundError, UsageError
from onnxcompress.search.estimates import OBJECTIVES, Estimates, Floats
from onnxcompress.search.pareto import representatives
from onnxcompress.search.space import Space, Vector

Vectors = NDArray[np.intp]
LISTED = 2**16
"""How many combinations are looked at one by one."""

EVALUATIONS = 2000
_ASKED = 4
"""How many times as many combinations are asked for, at most."""

LOST = 0.4
"""Expected relative squared error of the outputs from which on a network is left out, as long as
there are enough others. There, SqueezeNet is right in 25 % of cases (60), ResNet-20 in 68 (91)."""

_SHARE = 0.5
"""Part of the evaluations that begins with what sums of single superblocks say is best."""


def candidates(space: Space, estimates: Estimates, seed: int) -> Vectors:
    """Combinations to choose from, [n, superblocks].

    Args:
        space: all combinations.
        estimates: what they are expected to be like.
        seed: of every random choice.

    Raises:
        UsageError: the constraint allows none; or Optuna is not installed and the space is large.
    """
    if space.listed <= LISTED:
        found = np.array(list(space.vectors()), dtype=np.intp)
        if not len(found):
            raise UsageError(f"--constraint '{space.constraint.text}' allows no combination")
        return found
    return evolved(space, estimates, seed, EVALUATIONS)


def selected(every: Vectors, estimates: Estimates, count: int, seed: int) -> list[Vector]:
    """A few combinations that stand for all; the network as it is is none of them.

    Args:
        every: combinations, [n, superblocks].
        estimates: what they are expected to be like.
        count: how many, at most.
        seed: of every random choice.

    Raises:
        BoundError: there is nothing but the network as it is.
    """
    narrower = every[np.any(every > 0, axis=1)]
    if not len(narrower):
        raise BoundError("the constraint allows nothing but the network as it is")
    points = estimates.objectives(narrower)
    # Networks that lost their outputs are small and fast, and of no use to anybody.
    enough = np.sort(points[:, 0])[min(count, len(points)) - 1]
    usable = np.flatnonzero(points[:, 0] <= max(LOST, enough))
    best = usable[representatives(points[usable], count, seed)]
    return [tuple(int(at) for at in narrower[number]) for number in best]


def evolved(space: Space, estimates: Estimates, seed: int, evaluations: int) -> Vectors:
    """A sample of a space too large to list, bred towards its front (NSGA-II, Optuna).

    It begins with combinations that weighted sums of the single superblocks' estimates call best.

    Args:
        space: all combinations.
        estimates: what they are expected to be like.
        seed: of every random choice.
        evaluations: how many combinations are looked at.

    Raises:
        UsageError: Optuna is not installed, or none of the combinations that were looked at is
            allowed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            f"{space.size} combinations are too many to list, and searching them takes Optuna: "
            "pip install 'onnxcompress[distributed]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    generator = np.random.default_rng(seed)
    first = seeds(space, estimates, generator, int(_SHARE * evaluations))
    study = optuna.create_study(
        directions=["minimize"] * OBJECTIVES,
        sampler=optuna.samplers.NSGAIISampler(
            population_size=max(4, min(50, evaluations // 4)), seed=seed
        ),
    )
    names = [f"c{number}" for number in range(1, len(space.ratios) + 1)]
    for vector in first:
        study.enqueue_trial(dict(zip(names, vector, strict=True)))
    seen: dict[Vector, Floats] = {}
    # Combinations that were seen, and those that are not allowed, are no evaluations.
    for _ in range(_ASKED * evaluations):
        trial = study.ask()
        drawn = [
            trial.suggest_int(name, 0, len(each) - 1)
            for name, each in zip(names, space.ratios, strict=True)
        ]
        vector = space.settled(drawn)
        if not space.allows(vector):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        if vector not in seen:
            if len(seen) == evaluations:
                break
            seen[vector] = estimates.objectives(np.array([vector], dtype=np.intp))[0]
        study.tell(trial, [float(value) for value in seen[vector]])
    if not seen:
        tried = _ASKED * evaluations
        raise UsageError(f"--constraint '{space.constraint.text}' holds for none of {tried} tries")
    return np.array(list(seen), dtype=np.intp)


def seeds(
    space: Space, estimates: Estimates, generator: np.random.Generator, most: int
) -> list[Vector]:
    """Combinations that are best by a weighted sum of error, bytes and milliseconds.

    Without pairs such a sum falls apart into superblocks: one ratio each, and the best of all
    combinations is found without looking at them. Weights are drawn over orders of magnitude.

    Args:
        space: all combinations.
        estimates: of single superblocks.
        generator: draws the weights.
        most: how many combinations, at most.
    """
    octets = estimates.counted["weight_bytes"].single
    scale = [
        max(1e-300, sum(float(np.max(np.abs(one))) for one in tables))
        for tables in (estimates.error, octets, estimates.ms.single)
    ]
    found: dict[Vector, None] = {}
    for _ in range(_ASKED * most):
        weights = 10.0 ** generator.uniform(-3.0, 3.0, size=2)
        costs = [
            estimates.error[at] / scale[0]
            - weights[0] * octets[at] / scale[1]
            - weights[1] * estimates.ms.single[at] / scale[2]
            for at in range(len(space.ratios))
        ]
        vector = space.settled([int(np.argmin(cost)) for cost in costs])
        if space.allows(vector):
            found.setdefault(vector)
        if len(found) == most:
            break
    return list(found)
