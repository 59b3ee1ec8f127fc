"""Flows and channels: compact tensors of ids, what they mean, and classes of united ids."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxcompress.analyse.coupling.channels import Channels
from onnxcompress.analyse.coupling.flow import (
    FIXED,
    Flow,
    channel_flow,
    compact,
    expand,
    make_flow,
)

NAN = float("nan")
SHAPES = [(2, 3, 5, 7), (4, 4, 4, 4), (1, 1, 1, 1), (3,), (2, 1, 3)]


def whole(flow: Flow) -> np.ndarray:
    """The ids of every element, spread out."""
    return np.broadcast_to(flow.ids, flow.shape)


def whole_values(flow: Flow) -> np.ndarray:
    """The value of every element, spread out."""
    return np.broadcast_to(flow.values, flow.shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_channel_flow_has_one_id_per_index_of_its_axis(shape: tuple[int, ...]) -> None:
    for axis, extent in enumerate(shape):
        ids = np.arange(11, 11 + extent)
        values = np.arange(extent) * 0.5
        flow = channel_flow(shape, axis, ids, values)
        assert flow.shape == shape
        for place in itertools.product(*(range(n) for n in shape)):
            assert whole(flow)[place] == 11 + place[axis]
            assert whole_values(flow)[place] == 0.5 * place[axis]
        assert flow.varying == ((axis,) if extent > 1 else ())
        assert flow.tracked
        np.testing.assert_array_equal(flow.along(axis), ids)
        np.testing.assert_array_equal(flow.values_along(axis), values)


def test_channels_are_zero_unless_said_otherwise() -> None:
    flow = channel_flow((2, 3, 5), 1, np.array([4, 5, 6]))
    np.testing.assert_array_equal(whole_values(flow), np.zeros((2, 3, 5)))
    assert flow.values.shape == (1, 1, 1)


def test_the_shape_of_a_flow_is_the_tensors_even_where_the_arrays_are_compact() -> None:
    flow = channel_flow([2, 3, 5], 1, np.array([4, 5, 6]))
    assert flow.shape == (2, 3, 5)
    assert flow.ids.shape == (1, 3, 1)


def test_a_flow_of_fixed_elements_is_not_tracked() -> None:
    assert not make_flow((2, 3), np.full((2, 3), FIXED), np.zeros((2, 3))).tracked
    assert make_flow((2, 3), np.array([[0, 0, 0], [0, 0, 9]]), np.zeros((2, 3))).tracked


@pytest.mark.parametrize("shape", SHAPES)
def test_compact_drops_exactly_the_axes_along_which_nothing_changes(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(3)
    for count in range(len(shape) + 1):
        for changing in itertools.combinations(range(len(shape)), count):
            # Distinct numbers: an axis changes wherever its extent allows it.
            small = [n if a in changing else 1 for a, n in enumerate(shape)]
            array = generator.permutation(int(np.prod(small))).reshape(small)
            found = compact(np.broadcast_to(array, shape))
            assert found.shape == tuple(small)
            np.testing.assert_array_equal(np.broadcast_to(found, shape), array + np.zeros(shape))


def test_compact_sees_a_single_element_that_differs_at_the_far_end() -> None:
    array = np.zeros((2, 3, 4), dtype=np.int64)
    array[1, 2, 3] = 1
    assert compact(array).shape == (2, 3, 4)


def test_compact_takes_unknown_for_equal_to_unknown_but_not_to_a_number() -> None:
    unknown = np.full((2, 3), NAN)
    assert compact(unknown).shape == (1, 1)
    mixed = np.array([[NAN, 0.0], [NAN, 0.0]])
    np.testing.assert_array_equal(compact(mixed), [[NAN, 0.0]])
    differing = np.array([[NAN, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(compact(differing), differing)


@pytest.mark.parametrize("shape", [(2, 3, 5), (4, 4, 4)])
def test_expand_gives_the_named_axes_their_extents_and_no_others(shape: tuple[int, ...]) -> None:
    array = np.arange(shape[1]).reshape(1, shape[1], 1)
    for axes in ([], [0], [2], [0, 2], [0, 1, 2]):
        found = expand(array, shape, axes)
        assert found.shape == tuple(
            shape[a] if a in axes or a == 1 else 1 for a in range(len(shape))
        )
        np.testing.assert_array_equal(found, np.broadcast_to(array, found.shape))
        assert found.flags.c_contiguous


def test_make_flow_rounds_ids_that_a_kernel_moved_as_real_numbers() -> None:
    flow = make_flow((1, 3), np.array([[6.9999999, 8.0000001, 123456789.0]]), np.zeros((1, 3)))
    np.testing.assert_array_equal(flow.ids, [[7, 8, 123456789]])
    assert flow.ids.dtype == np.int64


def test_ids_and_values_are_compact_each_by_itself() -> None:
    ids = np.broadcast_to(np.array([1, 2, 3]).reshape(1, 3, 1), (2, 3, 4))
    values = np.broadcast_to(np.arange(4.0), (2, 3, 4))
    flow = make_flow((2, 3, 4), ids, values)
    assert flow.ids.shape == (1, 3, 1)
    assert flow.values.shape == (1, 1, 4)


def test_the_value_of_an_index_is_unknown_unless_it_is_the_same_everywhere_else() -> None:
    values = np.array([[1.0, 2.0, 3.0], [1.0, 5.0, NAN]])
    flow = make_flow((2, 3), np.array([[1, 2, 3], [1, 2, 3]]), values)
    np.testing.assert_array_equal(flow.values_along(1), [1.0, NAN, NAN])


def test_along_spreads_an_axis_that_carries_one_id_only() -> None:
    flow = channel_flow((2, 3, 5), 1, np.array([7, 8, 9]), 0.25)
    np.testing.assert_array_equal(flow.values_along(1), [0.25, 0.25, 0.25])
    lone = make_flow((2, 3), np.full((2, 3), 7), np.zeros((2, 3)))
    np.testing.assert_array_equal(lone.along(1), [7, 7, 7])


def test_fresh_ids_were_never_handed_out_before_and_are_not_fixed() -> None:
    channels = Channels()
    handed = np.concatenate([channels.fresh(3), channels.fresh(0), channels.fresh(4)])
    assert len(set(handed.tolist())) == 7
    assert FIXED not in handed
    np.testing.assert_array_equal(channels.roots(handed), handed)


def test_united_ids_share_a_root_and_others_do_not() -> None:
    channels = Channels()
    a, b, c = channels.fresh(4), channels.fresh(4), channels.fresh(4)
    channels.unite(a, b[::-1], "unused")
    channels.unite(b[:2], c[:2], "unused")
    # a0-b3, a1-b2, a2-b1-c1, a3-b0-c0
    expected = [[0, 1, 2, 3], [3, 2, 1, 0], [3, 2, 6, 7]]
    found = np.stack([channels.roots(line) for line in (a, b, c)])
    for one, other in itertools.product(np.ndindex(3, 4), repeat=2):
        same = expected[one[0]][one[1]] == expected[other[0]][other[1]]
        assert (found[one] == found[other]) == same


def test_roots_do_not_depend_on_the_order_of_unions() -> None:
    links = [(1, 2), (4, 5), (2, 4), (6, 7), (3, 6)]
    seen = set()
    for order in itertools.permutations(links):
        channels = Channels()
        ids = channels.fresh(8)
        for one, other in order:
            channels.unite(np.array([one]), np.array([other]), "unused")
        seen.add(tuple(channels.roots(ids).tolist()))
    assert seen == {(1, 1, 3, 1, 1, 3, 3, 8)}


def test_roots_keep_the_shape_and_leave_fixed_elements_alone() -> None:
    channels = Channels()
    ids = channels.fresh(3)
    channels.unite(ids[:1], ids[2:], "unused")
    grid = np.array([[ids[0], FIXED], [ids[1], ids[2]]])
    np.testing.assert_array_equal(channels.roots(grid), [[ids[0], FIXED], [ids[1], ids[0]]])
    assert channels.roots(np.zeros((0, 2), dtype=np.int64)).shape == (0, 2)


@pytest.mark.parametrize("fixed_first", [False, True])
def test_meeting_a_fixed_element_blocks_with_the_reason_and_unites_nothing(
    fixed_first: bool,
) -> None:
    channels = Channels()
    ids = channels.fresh(3)
    other = np.array([FIXED, ids[1], FIXED])
    channels.unite(*((other, ids) if fixed_first else (ids, other)), "it met the wall")
    assert [channels.reason(int(c)) for c in ids] == ["it met the wall", None, "it met the wall"]
    assert len(set(channels.roots(ids).tolist())) == 3


@pytest.mark.parametrize("blocked_first", [False, True])
@pytest.mark.parametrize("blocked", [0, 1])
def test_a_reason_holds_for_the_whole_class(blocked_first: bool, blocked: int) -> None:
    channels = Channels()
    ids = channels.fresh(2)
    if blocked_first:
        channels.block(ids[blocked : blocked + 1], "somebody looks")
    channels.unite(ids[:1], ids[1:], "unused")
    if not blocked_first:
        channels.block(ids[blocked : blocked + 1], "somebody looks")
    assert [channels.reason(int(c)) for c in ids] == ["somebody looks"] * 2


def test_the_first_reason_counts_and_fixed_elements_need_none() -> None:
    channels = Channels()
    ids = channels.fresh(2)
    channels.block(np.array([FIXED, ids[0]]), "first")
    channels.block(ids, "second")
    assert channels.reason(int(ids[0])) == "first"
    assert channels.reason(int(ids[1])) == "second"
    assert channels.reason(FIXED) is None
