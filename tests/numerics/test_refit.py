"""Least squares from moments against numpy.linalg.lstsq on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.numerics.refit import SHRINKAGES, refit

Array = np.ndarray
# groups, answers, features, rows; all distinct and all equal (but for the rows).
SIZES = [(2, 3, 5, 40), (4, 4, 4, 40), (1, 6, 2, 30)]


def problem(size: tuple[int, ...], seed: int = 0) -> tuple[Array, Array, Array]:
    """x [rows, g, d] of very different scales, y [rows, g, h], prior [g, h, d]."""
    groups, answers, features, rows = size
    generator = np.random.default_rng(seed)
    mix = generator.standard_normal((groups, features, features))
    x = np.einsum("rgd,gde->rge", generator.standard_normal((rows, groups, features)), mix)
    x *= np.geomspace(0.1, 10.0, features)
    y = generator.standard_normal((rows, groups, answers)) + x[..., :1]
    return x, y, generator.standard_normal((groups, answers, features))


def moments(x: Array, y: Array) -> tuple[Array, Array]:
    return (
        np.einsum("rgd,rge->gde", x, x) / len(x),
        np.einsum("rgh,rgd->ghd", y, x) / len(x),
    )


@pytest.mark.parametrize("size", SIZES)
def test_without_shrinkage_it_is_least_squares(size: tuple[int, ...]) -> None:
    x, y, prior = problem(size)
    found = refit(*moments(x, y), prior, 0.0)
    for at in range(size[0]):
        expected = np.linalg.lstsq(x[:, at], y[:, at], rcond=None)[0].T
        # Normal equations square the condition, here up to 1e5; the ridge of 1e-12 adds as much.
        np.testing.assert_allclose(found[at], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shrinkage", [*SHRINKAGES, 30.0])
def test_ridge_drawn_to_the_prior(size: tuple[int, ...], shrinkage: float) -> None:
    """lstsq of [x; s I] against [y; s A0'], with s^2 = rho rows tr(R) / d."""
    x, y, prior = problem(size, seed=1)
    gram, cross = moments(x, y)
    found = refit(gram, cross, prior, shrinkage)
    features = size[2]
    for at in range(size[0]):
        weight = np.sqrt(shrinkage * len(x) * np.trace(gram[at]) / features)
        left = np.concatenate([x[:, at], weight * np.eye(features)])
        right = np.concatenate([y[:, at], weight * prior[at].T])
        expected = np.linalg.lstsq(left, right, rcond=None)[0].T
        np.testing.assert_allclose(found[at], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("size", SIZES)
def test_with_endless_shrinkage_it_is_the_prior(size: tuple[int, ...]) -> None:
    x, y, prior = problem(size)
    kept = prior.copy()
    gram, cross = moments(x, y)
    found = refit(gram, cross, prior, 1e14)
    np.testing.assert_allclose(found, prior, atol=1e-10)
    near, far = (np.linalg.norm(refit(gram, cross, prior, s) - prior) for s in (10.0, 1e-3))
    assert 0 < near < far
    np.testing.assert_array_equal(prior, kept)
    np.testing.assert_array_equal(gram, moments(x, y)[0])


def test_dead_inputs_keep_their_weights() -> None:
    """What is always zero says nothing: its columns stay, the others are least squares."""
    x, y, prior = problem((1, 3, 5, 40))
    x[:, :, [1, 4]] = 0.0
    found = refit(*moments(x, y), prior, 0.0)
    np.testing.assert_array_equal(found[0][:, [1, 4]], prior[0][:, [1, 4]])
    alive = [0, 2, 3]
    expected = np.linalg.lstsq(x[:, 0, alive], y[:, 0], rcond=None)[0].T
    np.testing.assert_allclose(found[0][:, alive], expected, rtol=1e-5, atol=1e-6)


def test_a_group_without_inputs_stays() -> None:
    x, y, prior = problem((2, 3, 5, 40))
    x[:, 1] = 0.0
    found = refit(*moments(x, y), prior, 1e-5)
    np.testing.assert_array_equal(found[1], prior[1])
    assert not np.allclose(found[0], prior[0])


def test_fewer_rows_than_unknowns() -> None:
    """Of all exact fits, the one nearest to the prior."""
    x, y, prior = problem((1, 3, 6, 4))
    x[..., :] /= np.geomspace(0.1, 10.0, 6)
    found = refit(*moments(x, y), prior, 1e-9)
    step = np.linalg.lstsq(x[:, 0], y[:, 0] - x[:, 0] @ prior[0].T, rcond=None)[0].T
    np.testing.assert_allclose(found[0], prior[0] + step, atol=1e-5)
