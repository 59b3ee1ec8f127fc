"""Small batches side by side: they share threads out; results in the order of the batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Lanes:
    """Where batches are computed: one after the other, or some at a time.

    What comes out does not depend on which thread is first.

    Attributes:
        count: how many batches are computed at a time.
    """

    def __init__(self, pool: ThreadPoolExecutor | None = None, count: int = 1) -> None:
        self.count, self._pool = count, pool

    def map(self, function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
        """What a function makes of items, in their order; no more than `count` are held."""
        if self._pool is None:
            yield from map(function, items)
            return
        left = iter(items)
        while some := list(islice(left, self.count)):
            yield from self._pool.map(function, some)


@contextmanager
def lanes(count: int, threads: int) -> Iterator[Lanes]:
    """So many batches at a time, which share the threads out.

    Args:
        count: of batches.
        threads: of PyTorch, for all of them.
    """
    if count == 1:
        yield Lanes()
        return
    with torch_threads(max(1, threads // count)), ThreadPoolExecutor(count) as pool:
        yield Lanes(pool, count)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
