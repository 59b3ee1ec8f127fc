"""Threads of NumPy's own BLAS rest while a job runs, and come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from threadpoolctl import ThreadpoolController

from onnxcompress import pipeline
from onnxcompress.numerics.blas_threads import one_blas_pool
from onnxcompress.pipeline import plan_only, run


def pools() -> dict[str, int]:
    """Threads of every BLAS in this process."""
    found = ThreadpoolController().select(user_api="blas").lib_controllers
    return {pool.filepath: pool.get_num_threads() for pool in found}


@pytest.fixture(autouse=True)
def three() -> Iterator[dict[str, int]]:
    """Every pool with three threads, as if there were so many cores."""
    with ThreadpoolController().limit(limits=3, user_api="blas"):
        if len(found := pools()) < 2 or not any("scipy" in path for path in found):
            pytest.skip("NumPy and SciPy share one BLAS here")
        yield found


def test_one_pool_is_left(three: dict[str, int]) -> None:
    assert set(three.values()) == {3}
    with one_blas_pool():
        inside = pools()
    assert sorted(inside.values()) == [1] * (len(inside) - 1) + [3]
    (left,) = (path for path, threads in inside.items() if threads == 3)
    assert "scipy.libs" in left or "/scipy/" in left
    assert pools() == three


def test_threads_come_back_after_an_error(three: dict[str, int]) -> None:
    with pytest.raises(KeyError), one_blas_pool():
        raise KeyError
    assert pools() == three


@pytest.mark.parametrize("entry", [run, plan_only])
def test_jobs_and_dry_runs_keep_to_one(
    three: dict[str, int], entry: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, int]] = []

    def prepared(*_: object, **__: object) -> None:
        seen.append(pools())
        raise KeyError

    monkeypatch.setattr(pipeline, "prepare", prepared)
    with pytest.raises(KeyError):
        entry(None, None)
    assert sorted(seen[0].values()) == [1] * (len(three) - 1) + [3]
