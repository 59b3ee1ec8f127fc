"""The command line in-process and as a program, and models that compress within milliseconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress.latency.interleave as interleave
import onnxcompress.latency.table as table
import onnxcompress.verify.verdict as verdict
from onnxcompress.cli import run

MAIN = "from onnxcompress.cli import main; main()"
# Programs inherit that Ctrl-C is ignored, from a shell that runs the tests in its background.
LISTENING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


@dataclass(frozen=True)
class Outcome:
    """What a call of the command line left behind."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *words: str) -> None:
        """Check for the exit code and exactly one clear line on standard error, notes aside."""
        # Blank lines have a test of their own. Notes are written before it shows that a job fails.
        spoken = self.err.splitlines()
        lines = [line for line in spoken if line.strip() and not line.startswith("note: ")]
        assert self.code == code, self.err
        assert self.out == ""
        assert len(lines) == 1, self.err
        assert lines[0].startswith("onnxcompress: error: ")
        for word in words:
            assert word in lines[0]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Timing reduced to a formality: what it finds does not matter here, only what is done."""
    genuine = interleave.Budget
    brief = genuine(rounds=2, seconds=0.0, min_runs=1, warmup_runs=1)
    monkeypatch.setattr(interleave, "Budget", lambda **o: genuine(**o) if o else brief)
    monkeypatch.setattr(table, "LAYER_BUDGET", brief)
    monkeypatch.setattr(verdict, "peak_memory_bytes", lambda *_args, **_options: 12345)
    # Such timings must never reach the table of the person who runs the tests.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line in this process."""

    def call(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


HURRY = """
import onnxcompress.latency.interleave as interleave
brief = interleave.Budget(rounds=2, seconds=0.0, min_runs=1, warmup_runs=1)
interleave.Budget = lambda **_: brief
"""
NO_MEMORY = """
import onnxcompress.verify.verdict as verdict
verdict.peak_memory_bytes = lambda *_: None
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the command line as a program of its own, in `tmp_path`; `before` runs first."""
    started: list[subprocess.Popen[bytes]] = []

    def call(
        *arguments: str | Path,
        before: str = "",
        memory: bool = False,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        source = "\n".join([LISTENING, HURRY, "" if memory else NO_MEMORY, before, MAIN])
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen(
            [sys.executable, "-c", source, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            **options,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def low_rank(generator: np.random.Generator, shape: Sequence[int], rank: int) -> Any:
    """A weight [T, S, k, k] of rank `rank` in both channel modes, and a little noise."""
    outputs, inputs, *kernel = shape
    left = generator.standard_normal((outputs, rank))
    core = generator.standard_normal((rank, rank, *kernel))
    right = generator.standard_normal((rank, inputs))
    weight = np.einsum("ta,ab...,bs->ts...", left, core, right)
    weight += 1e-3 * weight.std() * generator.standard_normal(weight.shape)
    return (weight / np.sqrt((weight**2).sum(axis=(1, 2, 3)).mean())).astype(np.float32)


def build(*, channels: tuple[int, int], size: tuple[int, int], seed: int) -> onnx.ModelProto:
    """x -> conv1 -> relu -> conv2 (low rank) -> relu -> point (1x1) -> mean -> fc -> y."""
    generator = np.random.default_rng(seed)
    first, second = channels
    height, width = size
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    tiny (float[N, 3, {height}, {width}] x) => (float[N, 5] y)
    {{
      [conv1] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
      [relu1] b = Relu (a)
      [conv2] c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, w2, b2)
      [relu2] d = Relu (c)
      [point] e = Conv <kernel_shape = [1, 1]> (d, w3)
      [mean] f = GlobalAveragePool (e)
      [flat] g = Flatten (f)
      [fc] y = Gemm <transB = 1> (g, w4, b4)
    }}
    """
    model = onnx.parser.parse_model(text)
    weights = {
        "w1": generator.standard_normal((first, 3, 3, 3)) / 5,
        "b1": generator.standard_normal(first),
        "w2": low_rank(generator, (second, first, 3, 3), 8),
        "b2": generator.standard_normal(second),
        "w3": low_rank(generator, (second, second, 1, 1), 8),
        "w4": generator.standard_normal((5, second)),
        "b4": generator.standard_normal(5),
    }
    for name, values in weights.items():
        array = np.asarray(values, dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


@pytest.fixture(scope="session")
def tiny() -> onnx.ModelProto:
    """All extents distinct; to be copied before it is changed."""
    return build(channels=(24, 32), size=(6, 7), seed=1)


@pytest.fixture(scope="session")
def even() -> onnx.ModelProto:
    """Equal channels, equal sides."""
    return build(channels=(24, 24), size=(6, 6), seed=2)


@pytest.fixture
def model(tiny: onnx.ModelProto, tmp_path: Path) -> Path:
    """The tiny model as the file IN."""
    path = tmp_path / "in.onnx"
    path.write_bytes(tiny.SerializeToString())
    return path


@pytest.fixture
def damaged(tiny: onnx.ModelProto, tmp_path: Path) -> Callable[..., Path]:
    """The tiny model as the file IN after a function has changed it."""

    def make(change: Callable[[onnx.ModelProto], None], name: str = "in.onnx") -> Path:
        copy = onnx.ModelProto()
        copy.CopyFrom(tiny)
        change(copy)
        path = tmp_path / name
        path.write_bytes(copy.SerializeToString())
        return path

    return make


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """40 inputs without labels for the tiny model."""
    generator = np.random.default_rng(3)
    path = tmp_path / "samples.npz"
    np.savez(path, x=generator.standard_normal((40, 3, 6, 7)).astype(np.float32))
    return path


@pytest.fixture
def listing(tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """Every file in `tmp_path`, hidden ones too, with its content."""

    def read() -> dict[str, bytes]:
        return {
            str(path.relative_to(tmp_path)): path.read_bytes()
            for path in sorted(tmp_path.rglob("*"))
            if path.is_file()
        }

    return read


@pytest.fixture
def refuse(
    cli: Callable[..., Outcome], listing: Callable[[], dict[str, bytes]]
) -> Callable[..., Outcome]:
    """Run a command that must fail: the code, one line with these words, not a file changed."""

    def call(code: int, *arguments: str | Path, words: Sequence[str] = ()) -> Outcome:
        before = listing()
        outcome = cli(*arguments)
        outcome.refused(code, *words)
        assert listing() == before
        return outcome

    return call
