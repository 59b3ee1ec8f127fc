"""One BLAS with threads of its own, not two that get in each other's way.

NumPy and SciPy bring a BLAS each, with a pool of threads each, and idle threads of one keep cores
from the other for as long as they spin: where products of the one and factorisations of the other
alternate, both take several times as long (measured: docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import scipy
from threadpoolctl import ThreadpoolController

_SCIPY = Path(scipy.__file__).parent
_PLACES = (_SCIPY, _SCIPY.parent / "scipy.libs")


@contextmanager
def one_blas_pool() -> Iterator[None]:
    """Leave threads to SciPy's BLAS alone where it has one of its own; undone at the end.

    It holds for the whole process. Where all share one BLAS, nothing changes.
    """
    pools = ThreadpoolController().select(user_api="blas")
    others = [pool for pool in pools.lib_controllers if not _scipys(Path(pool.filepath))]
    if len(others) == len(pools.lib_controllers):
        others = []
    threads = [pool.get_num_threads() for pool in others]
    try:
        for pool in others:
            pool.set_num_threads(1)
        yield
    finally:
        for pool, number in zip(others, threads, strict=True):
            pool.set_num_threads(number)


def _scipys(library: Path) -> bool:
    return any(library.is_relative_to(place) for place in _PLACES)
