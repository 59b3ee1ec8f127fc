from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.kernels.feedback import Handing, damped


def layer(seed: int, outputs: int = 3, channels: int = 4, cells: int = 5) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((channels * cells, channels * cells))
    return generator.standard_normal((outputs, channels, cells)), mixing @ mixing.T


def test_what_is_handed_on_is_the_least_squares_answer() -> None:
    """With the first channel zeroed and the others free, they take the best weights there are."""
    weight, metric = layer(0)
    targets: list[np.ndarray] = []

    def nearest(channel: int, target: np.ndarray) -> np.ndarray:
        targets.append(target.copy())
        return np.zeros_like(target) if channel == 0 else target

    found = Handing(metric, 5).through(weight, nearest)
    flat = weight.reshape(3, -1)
    solved = np.linalg.solve(metric[5:, 5:], metric[5:] @ flat.T).T
    np.testing.assert_allclose(found[:, 1:].reshape(3, -1), solved, rtol=1e-8)
    np.testing.assert_array_equal(found[:, 0], 0.0)
    np.testing.assert_array_equal(targets[0], weight[:, 0])


@pytest.mark.parametrize("channel", range(4))
def test_metric_of_a_channel_is_what_is_left_of_its_error(channel: int) -> None:
    """Once all channels behind have made up for an error as well as they can."""
    _, metric = layer(1)
    error = np.random.default_rng(2).standard_normal(5)
    at, behind = slice(5 * channel, 5 * channel + 5), slice(5 * channel + 5, None)
    whole = np.zeros(20)
    whole[at] = error
    if channel < 3:
        whole[behind] = -np.linalg.solve(metric[behind, behind], metric[behind, at] @ error)
    own = Handing(metric, 5).metrics[channel]
    assert error @ own @ error == pytest.approx(whole @ metric @ whole, rel=1e-8)


def test_damping_leaves_no_direction_free() -> None:
    metric = np.diag([4.0, 0.0])
    assert np.linalg.eigvalsh(damped(metric)).min() == pytest.approx(2e-3)
