"""The only place that makes ONNX Runtime sessions; providers are exact, never silently others.

`get_available_providers()` lists CUDA on machines without a GPU, and a session asked for CUDA
there quietly becomes a CPU session. So the session itself is asked what it became, and for an
exact provider every node's placement is checked.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxcompress.errors import ModelError, ProviderError, UsageError
from onnxcompress.placement import compute_nodes_elsewhere

ort.set_default_logger_severity(4)

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_PROTOBUF_LIMIT = 2**31 - 2**20
Array = NDArray[np.generic]


def default_threads() -> int:
    """The number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Execution:
    """Where and how a model runs.

    Attributes:
        providers: order of preference, node by node; ("cuda",) alone demands that every compute
            node runs there, ("cuda", "cpu") allows the rest to run on the CPU.
        threads: intra-operator threads of the CPU provider.
        optimise: graph optimisations of ONNX Runtime (all, or none).
        spinning: whether idle threads spin; off for sessions that live beside another one.
    """

    providers: tuple[str, ...] = ("cpu",)
    threads: int = field(default_factory=default_threads)
    optimise: bool = True
    spinning: bool = True

    def __post_init__(self) -> None:
        unknown = [name for name in self.providers if name not in PROVIDERS]
        if unknown or not self.providers or len(set(self.providers)) != len(self.providers):
            raise UsageError(
                f"providers '{','.join(self.providers)}' are not understood: give cpu, cuda, "
                "or cuda,cpu"
            )
        if self.threads < 1:
            raise UsageError(f"threads must be at least 1, not {self.threads}")

    @property
    def device(self) -> str:
        """The preferred provider's short name."""
        return self.providers[0]


class Session:
    """A loaded model. Made by `open_session` only."""

    def __init__(self, session: ort.InferenceSession, execution: Execution) -> None:
        self._session = session
        self._cuda = execution.device == "cuda"
        self.input_names = tuple(i.name for i in session.get_inputs())
        self.output_names = tuple(o.name for o in session.get_outputs())

    def close(self) -> None:
        """Give the session's threads and memory back; the handle is useless afterwards."""
        del self._session

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Run once and return every output in graph order.

        Raises:
            ModelError: ONNX Runtime fails while running.
        """
        try:
            return [np.asarray(v) for v in self._session.run(None, dict(feeds))]
        except Exception as error:
            raise ModelError(
                f"ONNX Runtime fails while running the model: {_line(error)}"
            ) from error

    def runner(self, feeds: Mapping[str, Array]) -> Callable[[], None]:
        """A call that runs once and returns when the device has finished; for timing.

        On CUDA inputs and outputs are bound on the device, so that copies are not timed.
        """
        if not self._cuda:
            ready = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
            session = self._session

            def once_on_cpu() -> None:
                try:
                    session.run(None, ready)
                except Exception as error:
                    raise ModelError(f"the model fails while running: {_line(error)}") from error

            return once_on_cpu
        binding = self._session.io_binding()
        values = {n: ort.OrtValue.ortvalue_from_numpy(v, "cuda", 0) for n, v in feeds.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in self.output_names:
            binding.bind_output(name, "cuda", 0)

        def once() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return once


@contextmanager
def open_session(
    model: onnx.ModelProto | bytes | Path, execution: Execution | None = None
) -> Iterator[Session]:
    """Load a model into ONNX Runtime for the duration of a `with` block.

    Raises:
        ProviderError: the provider asked for is missing, or compute nodes would run elsewhere.
        ModelError: ONNX Runtime refuses the model.
    """
    execution = execution or Execution()
    names = [PROVIDERS[name] for name in execution.providers]
    missing = [name for name in names if name not in ort.get_available_providers()]
    if missing:
        raise ProviderError(
            f"this ONNX Runtime has no {', '.join(missing)}: install onnxruntime-gpu, or use "
            "--providers cpu"
        )
    options = _options(execution)
    with _loadable(model) as source:
        try:
            session = ort.InferenceSession(source, options, providers=names)
        except Exception as error:
            raise ModelError(f"ONNX Runtime refuses the model: {_line(error)}") from error
    _demand_providers(session, model, execution)
    handle = Session(session, execution)
    del session
    try:
        yield handle
    finally:
        # The thread pool must be gone before the next session starts: two disturb each other.
        handle.close()


def device_name(execution: Execution) -> str:
    """A name for the device that latencies depend on: processor or GPU model."""
    if execution.device == "cuda":
        devices = [d for d in ort.get_ep_devices() if "CUDA" in d.ep_name]
        for device in devices:
            description = dict(device.device.metadata).get("Description", "")
            if description:
                return f"cuda:{description}"
        return "cuda:unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return "cpu:" + line.split(":", 1)[1].strip()
    import platform

    return f"cpu:{platform.processor() or platform.machine()}"


def _options(execution: Execution) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = execution.threads
    options.inter_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = (
        level.ORT_ENABLE_ALL if execution.optimise else level.ORT_DISABLE_ALL
    )
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not execution.spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@contextmanager
def _loadable(model: onnx.ModelProto | bytes | Path) -> Iterator[bytes | str]:
    """The model as ONNX Runtime takes it: bytes, or a path when protobuf's 2 GB do not suffice."""
    if isinstance(model, bytes):
        yield model
    elif isinstance(model, Path):
        yield str(model)
    elif model.ByteSize() < _PROTOBUF_LIMIT:
        yield model.SerializeToString()
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            onnx.save_model(copy, path, save_as_external_data=True, location="model.data")
            yield str(path)


def _demand_providers(
    session: ort.InferenceSession, model: onnx.ModelProto | bytes | Path, execution: Execution
) -> None:
    """Refuse a session that became something else than what was asked for."""
    became = session.get_providers()
    absent = [name for name in execution.providers if PROVIDERS[name] not in became]
    if absent:
        raise ProviderError(
            f"{PROVIDERS[absent[0]]} was asked for, but the session runs on "
            f"{', '.join(became)}: a GPU, its driver and the CUDA and cuDNN libraries "
            "(pip install 'onnxcompress[cuda]') are needed"
        )
    if "cpu" in execution.providers:
        return
    wanted = PROVIDERS[execution.device]
    elsewhere = compute_nodes_elsewhere(_assignments(session), model, wanted)
    if elsewhere:
        shown = ", ".join(elsewhere[:8]) + (
            f" and {len(elsewhere) - 8} more" * (len(elsewhere) > 8)
        )
        raise ProviderError(
            f"{wanted} alone was asked for, but these compute nodes would run on the CPU: {shown}; "
            f"use --providers {execution.device},cpu to allow it"
        )


def _assignments(session: ort.InferenceSession) -> list[tuple[str, str, str]]:
    """(provider, node name, operator) of every node as the session placed it."""
    return [
        (part.ep_name, node.name, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def _line(error: Exception) -> str:
    """The first line of an ONNX Runtime message, without its numeric prefix."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text.split(" : ", 2)[-1][:400]
