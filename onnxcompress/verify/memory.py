"""Peak memory of loading and running a model, measured in a process of its own.

The child notes its resident size when everything is imported, loads the model, runs it three
times, and reports how far the peak rose. Run as `python -m onnxcompress.verify.memory`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from onnxcompress.runtime import Execution

_RUNS = 3
_PROTOBUF_LIMIT = 2**31 - 2**20


def peak_memory_bytes(
    model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]], execution: Execution
) -> int | None:
    """Bytes that loading and running `model` adds to a process, or None where it cannot be told.

    On CUDA the figure would be the host's share only, so none is given.
    """
    if execution.device != "cpu" or not Path("/proc/self/clear_refs").exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        if model.ByteSize() > _PROTOBUF_LIMIT:
            return None
        try:
            path.write_bytes(model.SerializeToString())
        except OSError:
            # No room for a copy: the figure is then missing, not wrong.
            return None
        job = {
            "model": str(path),
            "sizes": {name: list(size) for name, size in sizes.items()},
            "threads": execution.threads,
        }
        # A fault in the child must not fail the job either.
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "onnxcompress.verify.memory", json.dumps(job)],
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else None


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _child(job: Mapping[str, object]) -> int:
    from onnxcompress.analyse.sizes import random_feeds
    from onnxcompress.runtime import open_session

    path = Path(str(job["model"]))
    sizes = job["sizes"]
    assert isinstance(sizes, dict)  # noqa: S101  (made by the parent above)
    feeds = random_feeds(onnx.load(path, load_external_data=False), sizes)
    Path("/proc/self/clear_refs").write_text("5")
    start = _status("VmRSS")
    with open_session(path, Execution(threads=int(str(job["threads"])))) as session:
        for _ in range(_RUNS):
            session.run(feeds)
    return max(0, _status("VmHWM") - start)


if __name__ == "__main__":
    sys.stdout.write(str(_child(json.loads(sys.argv[1]))))
