from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.errors import UsageError
from onnxcompress.numerics.evbmf import evbmf
from onnxcompress.numerics.ranks import (
    Energy,
    Evbmf,
    Explicit,
    Full,
    Ratio,
    Weakened,
    parse_rank_policy,
)

SHARES = st.floats(min_value=0, max_value=1, exclude_min=True)


def rotated(values_out: list[float], values_in: list[float], taps: int) -> np.ndarray:
    """A weight [T, S, taps] with these singular values, up to scale, in its two unfoldings."""
    random = np.random.default_rng(0)
    out, inn = (
        np.linalg.qr(random.standard_normal((len(v), len(v))))[0] * v
        for v in (values_out, values_in)
    )
    # Orthonormal rows in both unfoldings: every (t, s) is alone on its own tap.
    flat = np.zeros((len(values_out), len(values_in), taps))
    assert taps >= len(values_out) * len(values_in)
    for index, (t, s) in enumerate(np.ndindex(flat.shape[:2])):
        flat[t, s, index] = 1
    return np.einsum("at,bs,tsk->abk", out, inn, flat)


def noisy(shape: tuple[int, int, int, int], ranks: tuple[int, int], seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    core = random.standard_normal((*ranks, *shape[2:]))
    out, inn = (random.standard_normal((shape[axis], ranks[axis])) for axis in (0, 1))
    weight = np.einsum("tr,sq,rqjk->tsjk", out, inn, core)
    return weight / weight.std() + 0.2 * random.standard_normal(shape)


# --- text --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("evbmf", Evbmf()),
        ("evbmf:approximate", Evbmf(tau="approximate")),
        ("weakened:0.8", Weakened(0.8)),
        ("energy:0.9", Energy(0.9)),
        ("energy:1", Energy(1.0)),
        ("ratio:5e-1", Ratio(0.5)),
        ("16", Explicit(16)),
        ("16x8", Explicit(16, 8)),
        (" full ", Full()),
    ],
)
def test_texts_are_read(text: str, policy: object) -> None:
    assert parse_rank_policy(text) == policy


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.one_of(
        st.sampled_from([Evbmf(), Evbmf(tau="approximate"), Full()]),
        st.builds(Weakened, SHARES),
        st.builds(Energy, SHARES),
        st.builds(Ratio, SHARES),
        st.builds(Explicit, st.integers(1, 10**6), st.none() | st.integers(1, 10**6)),
    )
)
def test_texts_round_trip(policy: object) -> None:
    assert parse_rank_policy(str(policy)) == policy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vbmf",
        "EVBMF",
        "evbmf:",
        "evbmf:0.5",
        "evbmf:fast",
        "weakened",
        "weakened:",
        "weakened:0",
        "weakened:1.01",
        "energy:-0.5",
        "energy:nan",
        "ratio:inf",
        "ratio:0.5:1",
        "0",
        "-3",
        "16x",
        "x8",
        "16x0",
        "16x8x4",
        "1.5",
        "16 x 8",
        "full:1",
        "full\nfull",
    ],
)
def test_other_texts_are_refused_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_rank_policy(text)
    message = str(refusal.value)
    assert repr(text.strip()) in message
    assert "\n" not in message
    for form in ("evbmf,", "evbmf:approximate", "weakened:", "energy:", "ratio:", "ROUTxRIN"):
        assert form in message
    assert message.endswith("full")


# --- EVBMF and weakened ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 16, 3, 2), (16, 16, 3, 3)])
def test_evbmf_finds_the_planted_ranks_of_both_modes(shape: tuple[int, int, int, int]) -> None:
    weight = noisy(shape, (5, 3))
    assert parse_rank_policy("evbmf").tucker2_ranks(weight) == (5, 3)
    assert parse_rank_policy("evbmf:approximate").tucker2_ranks(weight) == (5, 3)
    assert Evbmf().svd_rank(weight.reshape(shape[0], -1)) == 5


def test_each_variant_of_evbmf_uses_its_own_tau() -> None:
    matrix = np.zeros((128, 1152))
    np.fill_diagonal(matrix, np.arange(1, 129.0) ** -0.5)
    assert parse_rank_policy("evbmf").svd_rank(matrix) == 30
    assert parse_rank_policy("evbmf:approximate").svd_rank(matrix) == 31


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("weakened:1", (5, 3)),
        ("weakened:0.5", (14, 9)),  # int(24 - 9.5), int(16 - 6.5)
        ("weakened:0.8", (8, 5)),  # int(24 - 15.2), int(16 - 10.4)
        ("weakened:0.000001", (23, 15)),
    ],
)
def test_weakened_ranks(text: str, expected: tuple[int, int]) -> None:
    assert parse_rank_policy(text).tucker2_ranks(noisy((24, 16, 3, 2), (5, 3))) == expected


def test_weakened_ranks_are_not_lost_to_rounding() -> None:
    # 26 - 0.56 * (26 - 1) is 12, and 11.999999999999998 in floats.
    low = np.outer(np.arange(1.0, 27), np.ones(30))
    assert parse_rank_policy("weakened:0.56").svd_rank(low) == 12


@pytest.mark.parametrize("text", ["evbmf", "evbmf:approximate", "weakened:0.8"])
def test_where_all_is_noise_the_rank_is_0(text: str) -> None:
    weight = np.random.default_rng(5).standard_normal((24, 16, 3, 3))
    assert parse_rank_policy(text).tucker2_ranks(weight) == (0, 0)
    assert parse_rank_policy(text).svd_rank(weight.reshape(24, -1)) == 0


# --- energy ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.01, (1, 1)),
        (0.64, (1, 1)),
        (0.65, (2, 1)),
        (0.9, (2, 1)),
        (0.91, (3, 2)),
        (1.0, (3, 2)),
    ],
)
def test_energy_is_counted_in_each_mode(share: float, expected: tuple[int, int]) -> None:
    # Shares of 0.64, 0.26 and 0.1 in the output mode, 0.9 and 0.1 in the input mode: cumulated,
    # 0.64, 0.9 and 1 against 0.9 and 1. A share met exactly is met.
    weight = rotated([0.8, math.sqrt(0.26), math.sqrt(0.1)], [3.0, 1.0], taps=6)
    assert Energy(share).tucker2_ranks(weight) == expected
    assert Energy(share).tucker2_ranks(np.swapaxes(weight, 0, 1)) == expected[::-1]
    assert Energy(share).tucker2_ranks(1e-3 * weight) == expected


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_an_energy_of_1_is_the_numerical_rank(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    low = random.standard_normal((shape[0], 4)) * [1, 1e-3, 1e-6, 1e-9]
    assert Energy(1.0).svd_rank(low @ random.standard_normal((4, shape[1]))) == 4


@settings(max_examples=40, deadline=None, derandomize=True)
@given(share=SHARES, seed=st.integers(0, 10**6), rows=st.integers(1, 8), columns=st.integers(1, 8))
def test_the_energy_rank_is_the_least_that_keeps_the_share(
    share: float, seed: int, rows: int, columns: int
) -> None:
    matrix = np.random.default_rng(seed).standard_normal((rows, columns))
    rank = Energy(share).svd_rank(matrix)
    energies = np.linalg.svd(matrix, compute_uv=False) ** 2
    kept = [energies[:count].sum() / energies.sum() for count in range(energies.size + 1)]
    assert 1 <= rank <= energies.size
    assert kept[rank] >= share - 1e-8
    assert kept[rank - 1] < share + 1e-8


def test_a_zero_weight_has_no_energy() -> None:
    assert Energy(0.9).tucker2_ranks(np.zeros((4, 3, 3))) == (0, 0)


# --- ratio -------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    share=st.floats(0.02, 1),
    outputs=st.integers(1, 300),
    inputs=st.integers(1, 300),
    side=st.integers(1, 5),
)
def test_the_ratio_is_kept_and_used_up(share: float, outputs: int, inputs: int, side: int) -> None:
    # Zero strides: the policy looks at the shape alone.
    weight = np.broadcast_to(np.float64(1), (outputs, inputs, side, side))
    rank_out, rank_in = Ratio(share).tucker2_ranks(weight)
    budget = share * outputs * inputs * side**2

    def parameters(out: int, inn: int) -> int:
        return inputs * inn + side**2 * out * inn + outputs * out

    assert 0 <= rank_out <= outputs
    assert 0 <= rank_in <= inputs
    assert parameters(rank_out, rank_in) <= budget * (1 + 1e-12)
    # Both ranks are rounded down from where the budget is met exactly, unless they are in full.
    grown = min(outputs, rank_out + 1), min(inputs, rank_in + 1)
    if grown != (outputs, inputs):
        assert parameters(*grown) > budget * (1 - 1e-12)


@pytest.mark.parametrize(
    ("shape", "share", "expected"),
    [
        # beta = 1: 9 R^2 + 128 R = 0.5 * 36864, R = 38.7.
        ((64, 64, 3, 3), 0.5, (38, 38)),
        # beta = 0.8 * 128 / 32 = 3.2: 28.8 R^2 + 441.6 R = 0.25 * 36864, R = 11.8, 3.2 R = 37.8.
        ((128, 32, 3, 3), 0.25, (37, 11)),
        # beta = 1 would give 26 outputs of 16: 16 of them, and (0.9 * 9216 - 256) / 208 = 38.6.
        ((16, 64, 3, 3), 0.9, (16, 38)),
        # One axis: 3 R^2 + 40 R = 0.3 * 1200, R = 6.1.
        ((20, 20, 3), 0.3, (6, 6)),
    ],
)
def test_ratios_by_hand(shape: tuple[int, ...], share: float, expected: tuple[int, int]) -> None:
    assert Ratio(share).tucker2_ranks(np.ones(shape)) == expected


def test_a_ratio_that_leaves_nothing_is_0() -> None:
    assert 0 in Ratio(0.01).tucker2_ranks(np.ones((8, 8, 3, 3)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(share=st.floats(0.01, 1), rows=st.integers(1, 400), columns=st.integers(1, 400))
def test_the_ratio_of_a_matrix(share: float, rows: int, columns: int) -> None:
    rank = Ratio(share).svd_rank(np.broadcast_to(np.float64(1), (rows, columns)))
    budget = share * rows * columns
    assert rank * (rows + columns) <= budget * (1 + 1e-12)
    assert (rank + 1) * (rows + columns) > budget * (1 - 1e-12)


# --- explicit and full -------------------------------------------------------------------------


def test_explicit_ranks() -> None:
    weight = np.ones((7, 5, 3))
    assert parse_rank_policy("4").tucker2_ranks(weight) == (4, 4)
    assert parse_rank_policy("7x2").tucker2_ranks(weight) == (7, 2)
    assert parse_rank_policy("4").svd_rank(np.ones((4, 9))) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8x2", "rank 8 is larger than the full output rank 7"),
        ("2x6", "rank 6 is larger than the full input rank 5"),
        ("6", "rank 6 is larger than the full input rank 5"),
    ],
)
def test_explicit_ranks_beyond_the_weight_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"{message}; give . or less, or 'full'"):
        parse_rank_policy(text).tucker2_ranks(np.ones((7, 5, 3)))


def test_explicit_ranks_beyond_the_matrix_are_refused() -> None:
    with pytest.raises(UsageError, match="rank 5 is larger than the full rank 4"):
        parse_rank_policy("5").svd_rank(np.ones((4, 9)))
    with pytest.raises(UsageError, match="rank 2x3 is a pair"):
        parse_rank_policy("2x3").svd_rank(np.ones((4, 9)))


@pytest.mark.parametrize("shape", [(7, 5, 3), (16, 3, 1, 1), (4, 4, 4)])
def test_full_ranks(shape: tuple[int, ...]) -> None:
    assert Full().tucker2_ranks(np.ones(shape)) == shape[:2]
    assert Full().svd_rank(np.ones(shape[:2])) == min(shape[:2])


# --- every policy ------------------------------------------------------------------------------

POLICIES = ["evbmf", "evbmf:approximate", "weakened:0.5", "energy:0.9", "ratio:0.5", "2", "full"]


@pytest.mark.parametrize("text", POLICIES)
def test_ranks_follow_their_modes(text: str) -> None:
    # Swapping the channels swaps the ranks; only MUSCO's ratio treats the two unlike.
    weight = noisy((24, 16, 3, 2), (5, 3))
    policy = parse_rank_policy(text)
    rank_out, rank_in = policy.tucker2_ranks(weight)
    assert 0 < rank_out <= 24
    assert 0 < rank_in <= 16
    if text != "ratio:0.5":
        assert policy.tucker2_ranks(np.swapaxes(weight, 0, 1)) == (rank_in, rank_out)
        assert policy.tucker2_ranks(7e-4 * weight) == (rank_out, rank_in)
    assert evbmf(weight.reshape(24, -1)).rank == 5


@pytest.mark.parametrize("text", POLICIES)
def test_bad_arrays_are_refused(text: str) -> None:
    policy = parse_rank_policy(text)
    with pytest.raises(ValueError, match="NaN"):
        policy.tucker2_ranks(np.full((4, 4, 3), np.nan))
    with pytest.raises(ValueError, match="NaN"):
        policy.svd_rank(np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match="shape"):
        policy.tucker2_ranks(np.ones(4))
    with pytest.raises(ValueError, match="shape"):
        policy.svd_rank(np.ones((4, 4, 4)))
