"""A search whose driver is killed (kill -9): its workers end, and the same command goes on."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcompress.config import Config


def findings(folder: Path) -> int:
    """How many findings a search has so far."""
    path = folder / "search.db"
    if not path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(path)) as connection:
        try:
            return int(connection.execute("SELECT COUNT(*) FROM findings").fetchone()[0])
        except sqlite3.Error:
            return 0


def children(parent: int) -> set[int]:
    """Processes whose parent that is."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state parent ...; a name may hold blanks.
            number, rest = stat.parent.name, stat.read_text().rpartition(")")[2].split()
            if int(rest[1]) == parent:
                found.add(int(number))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are read from /proc")
def test_workers_of_a_killed_driver_end(
    network: onnx.ModelProto, config_for: Callable[..., Config], folder: Path, tmp_path: Path
) -> None:
    onnx.save(network, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=config_for().data["x"])
    command = [
        *(sys.executable, "-m", "onnxcompress", "search", str(tmp_path / "net.onnx"), str(folder)),
        *("--data", str(tmp_path / "data.npz"), "--round-to", "1", "--candidates", "3"),
        *("--executor", "processes", "--workers", "2", "--threads", "1", "--quiet"),
    ]
    driver = subprocess.Popen(command)
    while findings(folder) < 2 and driver.poll() is None:
        time.sleep(0.05)
    workers = children(driver.pid)
    driver.kill()
    driver.wait()
    assert len(workers) >= 2
    end = time.monotonic() + 30.0
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < end:
        time.sleep(0.2)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_a_driver_that_was_killed_goes_on(
    network: onnx.ModelProto, config_for: Callable[..., Config], folder: Path, tmp_path: Path
) -> None:
    """`kill -9` of the whole command, then the same command: nothing is built twice."""
    onnx.save(network, tmp_path / "net.onnx")
    config = config_for()
    np.savez(tmp_path / "data.npz", x=config.data["x"])
    np.savez(tmp_path / "eval.npz", x=config.eval_data["x"])
    command = [
        *(sys.executable, "-m", "onnxcompress", "search", str(tmp_path / "net.onnx"), str(folder)),
        *("--data", str(tmp_path / "data.npz"), "--eval", str(tmp_path / "eval.npz")),
        *("--round-to", "1", "--candidates", "3", "--executor", "serial", "--threads", "1"),
    ]
    first = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not list(folder.glob("c*.plan.json")) and first.poll() is None:
        time.sleep(0.02)
    first.kill()
    first.wait()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("c*.plan.json")}
    assert before
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("c*.plan.json")}
    assert len(after) > 1
    # The last one may have been written when the finding was not yet.
    changed = [name for name in before if after[name] != before[name]]
    assert len(changed) <= 1
    assert (folder / "search.csv").read_text().count("\n") == len(after) + 1
    assert "recommended, at the knee of the front: c" in second.stdout
