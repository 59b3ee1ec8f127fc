"""Layers to rebuild by the group lasso, and its optimality conditions written out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from onnxcompress.numerics.quadratic import FREE, Quadratic


def reference() -> tuple[np.ndarray, np.ndarray]:
    """The toy layer whose numbers are pinned: inputs [400, 12] and weight [5, 12]."""
    random = np.random.RandomState(0)
    linear = random.randn(400, 4) @ random.randn(4, 12) + 0.3 * random.randn(400, 12)
    return np.maximum(linear, 0), random.randn(5, 12)


def layer(inputs: np.ndarray, weight: np.ndarray, groups: np.ndarray | None = None) -> Quadratic:
    gram = inputs.T @ inputs / len(inputs)
    energy = float(np.trace(weight @ gram @ weight.T))
    if groups is None:
        groups = np.arange(inputs.shape[1])
    return Quadratic(gram, weight @ gram, energy, groups)


def relu_layer(
    seed: int, *, width: int, height: int, size: int = 1, dead: int = 0, twins: int = 0
) -> Quadratic:
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((500, width // 3)) @ random.standard_normal((width // 3, width))
    inputs = np.maximum(inputs + 0.3 * random.standard_normal(inputs.shape), 0)
    inputs[:, width - dead :] = 0
    inputs[:, :twins] = inputs[:, twins : 2 * twins]
    return layer(inputs, random.standard_normal((height, width)), np.arange(width) // size)


def violation(problems: list[Quadratic], matrices, lam: float, weights: np.ndarray) -> float:
    """The optimality conditions, written out group by group."""
    worst = 0.0
    for group, weight in enumerate(weights):
        blocks, slopes = [], []
        for problem, matrix in zip(problems, matrices, strict=True):
            columns = np.flatnonzero(problem.groups == group)
            blocks.append(matrix[:, columns].ravel())
            slopes.append((matrix @ problem.gram - problem.cross)[:, columns].ravel())
        block, slope = np.concatenate(blocks), np.concatenate(slopes)
        if block.any():
            gap = np.linalg.norm(slope + lam * weight * block / np.linalg.norm(block))
        else:
            gap = max(np.linalg.norm(slope) - lam * weight, 0.0)
        worst = max(worst, float(gap))
    for problem, matrix in zip(problems, matrices, strict=True):
        slope = (matrix @ problem.gram - problem.cross)[:, problem.groups == FREE]
        worst = max(worst, float(np.abs(slope).max(initial=0.0)))
    return worst


@pytest.fixture(scope="session")
def lasso() -> SimpleNamespace:
    """Layers, and the optimality conditions."""
    return SimpleNamespace(
        reference=reference,
        layer=layer,
        relu_layer=relu_layer,
        violation=violation,
    )
