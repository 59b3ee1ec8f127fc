"""Layer timings on disk, so that no layer is timed twice on the same machine.

The key holds everything a latency depends on: device, provider, threads, ONNX Runtime's version,
and the layer's structure (operators with fused neighbours, attributes, sizes, dtypes). An entry
holds the original and the candidate as they were measured side by side.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from onnxcompress.graph.extract import structure_key
from onnxcompress.latency.interleave import LAYER_BUDGET, Timing, interleaved
from onnxcompress.runtime import Array, Execution, device_name

_FORMAT = 1

_CLOSE = 0.1
_REPETITIONS = 3
"""How closely a ratio is to be known, and how often rounds are taken at most until it is."""


@dataclass(frozen=True)
class LayerTiming:
    """Round medians, in milliseconds, of an original layer and its replacement, side by side."""

    original_ms: tuple[float, ...]
    candidate_ms: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over rounds of candidate over original."""
        return float(np.median(np.divide(self.candidate_ms, self.original_ms)))

    @property
    def saved_ms(self) -> float:
        """Median over rounds of the time saved (negative when slower)."""
        return float(np.median(np.subtract(self.original_ms, self.candidate_ms)))

    @property
    def faster(self) -> bool:
        """Whether the candidate won, by the median and in all rounds but one of seven at least."""
        wins = sum(c < o for o, c in zip(self.original_ms, self.candidate_ms, strict=True))
        return self.ratio < 1.0 and wins >= len(self.original_ms) - _losses(len(self.original_ms))

    def longer(self, original: Timing, candidate: Timing) -> LayerTiming:
        """With more rounds."""
        return LayerTiming(
            (*self.original_ms, *map(float, original.round_medians)),
            (*self.candidate_ms, *map(float, candidate.round_medians)),
        )

    @property
    def settled(self) -> bool:
        """Whether the ratio is known closely: half of the rounds lie near its median."""
        low, high = np.percentile(np.divide(self.candidate_ms, self.original_ms), [25.0, 75.0])
        return bool(high - low <= _CLOSE * self.ratio)


def _losses(rounds: int) -> int:
    """In how many rounds a faster candidate may have been slower."""
    return max(1, rounds // 7)


def together(timings: Sequence[LayerTiming]) -> LayerTiming:
    """Several layers as one: their times round by round, added up.

    Of layers that were timed for more rounds than others, rounds in a row count as one, by their
    median.
    """
    rounds = min(len(timing.original_ms) for timing in timings)

    def added(every: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        rows = [[float(np.median(part)) for part in np.array_split(ms, rounds)] for ms in every]
        return tuple(float(sum(ms)) for ms in zip(*rows, strict=True))

    return LayerTiming(
        added([timing.original_ms for timing in timings]),
        added([timing.candidate_ms for timing in timings]),
    )


class LatencyTable:
    """Measured layer timings, in memory and (if `path` is given) on disk.

    A damaged or foreign file is refused rather than repaired: `notes` says so and it is rewritten.
    """

    def __init__(self, path: Path | None, execution: Execution) -> None:
        self.path = path
        self.execution = execution
        self.measured = 0
        self.notes: list[str] = []
        self._context = {
            "device": device_name(execution),
            "providers": list(execution.providers),
            "threads": execution.threads,
            "onnxruntime": onnxruntime.__version__,
        }
        self._entries: dict[str, dict[str, list[float]]] = self._read()

    def compare(
        self, original: onnx.ModelProto, candidates: list[onnx.ModelProto]
    ) -> list[LayerTiming]:
        """Time `candidates` against `original`, side by side, unless the table knows them.

        Args:
            original: the layer cut out of the network.
            candidates: its replacements, with the same inputs, or with inputs of fewer channels.
        """
        keys = [self._key(original, candidate) for candidate in candidates]
        new = [i for i, key in enumerate(keys) if key not in self._entries]
        if new:
            for i, timing in zip(
                new, self._measured(original, [candidates[i] for i in new]), strict=True
            ):
                self._entries[keys[i]] = {
                    "original_ms": [round(v, 6) for v in timing.original_ms],
                    "candidate_ms": [round(v, 6) for v in timing.candidate_ms],
                }
            self.measured += len(new)
            self._write()
        return [
            LayerTiming(tuple(e["original_ms"]), tuple(e["candidate_ms"]))
            for e in (self._entries[key] for key in keys)
        ]

    def _measured(
        self, original: onnx.ModelProto, candidates: list[onnx.ModelProto]
    ) -> list[LayerTiming]:
        """Rounds side by side, and more of them for those whose ratio is not known closely."""
        found = [LayerTiming((), ()) for _ in candidates]
        pending = list(range(len(candidates)))
        for _ in range(_REPETITIONS):
            models = [original, *(candidates[at] for at in pending)]
            feeds = [random_inputs(model) for model in models]
            first, *others = interleaved(models, feeds, self.execution, budget=LAYER_BUDGET)
            for at, timing in zip(pending, others, strict=True):
                found[at] = found[at].longer(first, timing)
            pending = [at for at in pending if not found[at].settled]
            if not pending:
                break
        return found

    def _key(self, original: onnx.ModelProto, candidate: onnx.ModelProto) -> str:
        parts = [self._context, structure_key(original), structure_key(candidate)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _read(self) -> dict[str, dict[str, list[float]]]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            content = json.loads(self.path.read_text())
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}")
            entries: dict[str, dict[str, list[float]]] = content["entries"]
            for entry in entries.values():
                pairs = zip(entry["original_ms"], entry["candidate_ms"], strict=True)
                if not all(float(a) > 0 and float(b) > 0 for a, b in pairs):
                    raise ValueError("a time is not positive")
                if not entry["original_ms"]:
                    raise ValueError("an entry has no rounds")
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            self.notes.append(f"latency table '{self.path}' is unusable ({error}): measured afresh")
            return {}
        return entries

    def _write(self) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, suffix=".tmp")
            with os.fdopen(handle, "w") as file:
                json.dump({"format": _FORMAT, "entries": self._entries}, file)
            Path(name).replace(self.path)
        except OSError as error:
            self.notes.append(f"latency table '{self.path}' cannot be written: {error.strerror}")
            with contextlib.suppress(OSError, UnboundLocalError):
                Path(name).unlink()
            self.path = None


def default_table_path() -> Path:
    """Where layer timings are kept unless a run folder is given (XDG cache folder)."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "onnxcompress" / "latency.json"


def random_inputs(model: onnx.ModelProto) -> dict[str, Array]:
    """Standard normal inputs for a model of fixed sizes, in its dtypes; the same every time."""
    generator = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        shape = [dim.dim_value for dim in tensor.shape.dim]
        feeds[value.name] = generator.standard_normal(shape).astype(dtype)
    return feeds
