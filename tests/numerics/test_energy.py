from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.numerics.energy import lost_energy_svd, lost_energy_tucker2
from onnxcompress.numerics.tucker import tucker2

SHAPES = [(5, 4, 3, 2), (4, 4, 4, 4), (3, 6, 2), (6, 3)]


def truncated_hosvd_error(weight: np.ndarray, rank_out: int, rank_in: int) -> float:
    """Project on the leading left singular vectors of both unfoldings and measure what is left."""
    rows = np.linalg.svd(weight.reshape(weight.shape[0], -1))[0][:, :rank_out]
    unfolded = np.moveaxis(weight, 1, 0).reshape(weight.shape[1], -1)
    columns = np.linalg.svd(unfolded)[0][:, :rank_in]
    projected = np.einsum("ts...,ta,ua->us...", weight, rows, rows)
    projected = np.einsum("ts...,sb,vb->tv...", projected, columns, columns)
    return float(((weight - projected) ** 2).sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("groups", [1, 3])
def test_tucker_table_is_the_error_of_the_truncated_hosvd(
    shape: tuple[int, ...], groups: int
) -> None:
    generator = np.random.default_rng(1)
    blocks = [generator.standard_normal(shape) * (g + 1.0) for g in range(groups)]
    table = lost_energy_tucker2(blocks)
    assert table.shape == (shape[0] + 1, shape[1] + 1)
    total = sum((block**2).sum() for block in blocks)
    expected = np.array(
        [
            [
                sum(truncated_hosvd_error(b, r, c) for b in blocks) / total
                for c in range(shape[1] + 1)
            ]
            for r in range(shape[0] + 1)
        ]
    )
    # Differences of sums near 1: a few ulps of 1 each.
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_tucker_table_bounds_the_iteration_from_above(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(2).standard_normal(shape)
    table = lost_energy_tucker2([weight])
    for rank_out in range(1, shape[0] + 1):
        for rank_in in range(1, shape[1] + 1):
            found = tucker2(weight, rank_out, rank_in).relative_error ** 2
            assert found <= table[rank_out, rank_in] + 1e-12


@pytest.mark.parametrize("shape", [(5, 3), (4, 4), (2, 7)])
@pytest.mark.parametrize("groups", [1, 2])
def test_svd_table_is_the_error_of_truncation(shape: tuple[int, int], groups: int) -> None:
    generator = np.random.default_rng(3)
    blocks = [generator.standard_normal(shape) * (g + 1.0) for g in range(groups)]
    table = lost_energy_svd(blocks)
    total = sum((block**2).sum() for block in blocks)
    for rank in range(min(shape) + 1):
        lost = 0.0
        for block in blocks:
            left, values, right = np.linalg.svd(block, full_matrices=False)
            best = (left[:, :rank] * values[:rank]) @ right[:rank]
            lost += ((block - best) ** 2).sum()
        assert table[rank] == pytest.approx(lost / total, abs=1e-14)
    assert table[-1] == 0.0
