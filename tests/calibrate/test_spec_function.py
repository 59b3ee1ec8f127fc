"""SPEC as module:function: imported from the current directory, run, collected, distrusted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.calibrate import function as module
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.spec import load_dataset
from onnxcompress.errors import DataError, OnnxCompressError

FLOAT = np.dtype(np.float32)
ONE = (InputSpec("in", FLOAT, ("N", 2, 3)),)


def data(count: int = 5) -> np.ndarray:
    return np.arange(count * 6, dtype=FLOAT).reshape(count, 2, 3)


def feed(dataset: Dataset, name: str = "in") -> np.ndarray:
    return np.concatenate([feeds[name] for feeds, _ in dataset.batches(2)])


def refused(
    call: Callable[[], object], match: str, kind: type[OnnxCompressError] = DataError
) -> None:
    """The error is of the right class, and one line."""
    with pytest.raises(kind, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.fixture
def write_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Callable[..., str]]:
    """Write a module into the current directory; returns its name. Forgets it afterwards."""
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)

    def write(body: str, name: str = "calibration_data_under_test") -> str:
        (tmp_path / f"{name}.py").write_text("import numpy as np\n" + body)
        return name

    yield write
    for name in set(sys.modules) - known:
        if "under_test" in name:
            del sys.modules[name]


def test_function_yields_batches(write_module: Callable[..., str]) -> None:
    write_module("SIZES = (2, 3)", "sizes_under_test")
    name = write_module(
        "buffer = np.zeros((3, 2, 3), np.float32)\n"
        "def load():\n"
        "    from sizes_under_test import SIZES\n"
        "    done = 0\n"
        "    for size in SIZES:\n"
        "        buffer[:size] = np.arange(done * 6, (done + size) * 6).reshape(size, 2, 3)\n"
        "        yield {'x': buffer[:size], 'y': np.arange(done, done + size)}\n"
        "        done += size\n"
    )
    path = sys.path[:]
    dataset = load_dataset(f"{name}:load", ONE)
    assert sys.path == path
    np.testing.assert_array_equal(feed(dataset), data())  # although the buffer was refilled
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4]
    assert dataset.source == f"{name}:load"


def test_function_may_return_a_list_from_a_package(
    write_module: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "package_under_test").mkdir()
    (tmp_path / "package_under_test" / "__init__.py").touch()
    write_module(
        "def load():\n    return [{'in': np.zeros((2, 2, 3))}, {'in': np.ones((1, 2, 3))}]\n",
        "package_under_test/inner",
    )
    dataset = load_dataset("package_under_test.inner:load", ONE)
    assert feed(dataset)[:, 0, 0].tolist() == [0, 0, 1]


def test_function_is_collected_no_further_than_the_limit(write_module: Callable[..., str]) -> None:
    name = write_module(
        "def load():\n"
        "    for i in range(10**9):\n"
        "        assert i < 3\n"
        "        yield {'in': np.full((2, 2, 3), float(i))}\n"
    )
    dataset = load_dataset(f"{name}:load", ONE, limit=5)
    assert feed(dataset)[:, 0, 0].tolist() == [0, 0, 1, 1, 2]


def test_function_is_collected_no_further_than_the_bound(
    write_module: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_COLLECTED_BYTES", 500)
    name = write_module(
        "def load():\n"
        "    for i in range(12):\n"
        "        assert i < 11\n"  # 48 bytes each: the 11th goes beyond 500
        "        yield {'in': np.zeros((2, 2, 3), np.float32)}\n"
    )
    refused(lambda: load_dataset(f"{name}:load", ONE), "yielded more than 500 bytes")


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("1/0", r"importing .* from .* raised ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "importing .* raised SystemExit: 3"),
        ("def load(:", "raised SyntaxError"),
        ("def other(): pass", "has no function load"),
        ("load = 3", "has no function load"),
        ("def load(path): pass", r"load\(\) raised TypeError"),
        ("def load(): raise KeyError('a\\nb')", r"load\(\) raised KeyError"),
        ("def load(): raise RuntimeError('a\\nb')", r"load\(\) raised RuntimeError: a b$"),
        (
            "def load():\n    yield {'in': np.zeros((1, 2, 3))}\n    raise OSError('tape')",
            r"load\(\) raised OSError: tape",
        ),
        ("def load(): return None", r"load\(\) raised TypeError"),
        ("def load(): return []", "yielded nothing"),
        ("def load(): yield np.zeros((1, 2, 3))", "must yield dicts, not ndarray"),
        ("def load(): yield None", "must yield dicts, not NoneType"),
        ("def load(): yield {'image': np.zeros((1, 2, 3))}", "batch 0: missing inputs"),
        ("def load(): yield {'in': 'text'}", "batch 0: 'in' must be an array of numbers"),
        ("def load(): yield {'in': [[1], [2, 3]]}", "batch 0: 'in' is not an array: ValueError"),
        ("def load(): yield {'in': np.zeros((0, 2, 3))}", r"batch 0: .*\{'in': 0\}"),
        (
            "def load(): yield {'in': np.zeros((2, 2, 3)), 'y': np.zeros(3, int)}",
            r"batch 0: .*\{'in': 2, 'y': 3\}",
        ),
        (
            "def load():\n    for n in (3, 4): yield {'in': np.zeros((1, 2, n))}",
            r"batch 1: samples are .*float64\[2, 4\].*float64\[2, 3\].* in batch 0",
        ),
        (
            "def load():\n    for t in 'fd': yield {'in': np.zeros((1, 2, 3), t)}",
            "batch 1: samples are .*float64.*float32",
        ),
        (
            "def load():\n    yield {'in': np.zeros((1, 2, 3))}\n"
            "    yield {'in': np.zeros((1, 2, 3)), 'y': np.zeros(1, int)}",
            "batch 1: samples are .*'y'",
        ),
    ],
)
def test_functions_that_fail(write_module: Callable[..., str], body: str, match: str) -> None:
    name = write_module(body + "\n")
    path = sys.path[:]
    refused(lambda: load_dataset(f"{name}:load", ONE), match)
    assert sys.path == path


def test_a_module_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = sys.path[:]
    refused(
        lambda: load_dataset("no_such_module_under_test:load", ONE),
        "importing no_such_module_under_test from .* raised ModuleNotFoundError",
    )
    assert sys.path == path
