"""Fine-tuning inside of a compression job: the original is the teacher, its inputs are the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from onnxcompress.errors import UsageError
from onnxcompress.finetune.settings import Settings, parse_effort
from onnxcompress.preparation import Prepared
from onnxcompress.progress import Progress

if TYPE_CHECKING:
    from onnxcompress.finetune.job import Distilled

MISSING = "fine-tuning needs PyTorch: pip install 'onnxcompress[finetune]'"


class Retraining:
    """Trains results of one job.

    Args:
        prepared: the job.
        effort: how long, as text.
        progress: told what every epoch came to.

    Raises:
        UsageError: PyTorch is not installed, or there are no real inputs.
        UnsupportedError: an operator of the original is not known in training.
        ProviderError: PyTorch sees no GPU where `--providers cuda` wants one.
    """

    def __init__(self, prepared: Prepared, effort: str, progress: Progress) -> None:
        require_torch()
        from onnxcompress.finetune.job import check_device
        from onnxcompress.finetune.network import Network

        config, inputs = prepared.config, prepared.inputs
        if inputs.calibration is None or inputs.synthetic:
            raise UsageError("--finetune trains on the inputs of --data: give real ones")
        self._prepared, self._progress = prepared, progress
        self._data = inputs.calibration
        self._settings = Settings(
            effort=parse_effort(effort),
            threads=config.execution.threads,
            seed=config.seed,
            device="cuda" if config.execution.providers == ("cuda",) else "cpu",
            run=config.run,
        )
        # Said before the work, not after it.
        check_device(self._settings.device)
        Network(prepared.source.model)

    def __call__(self, model: onnx.ModelProto) -> Distilled:
        """The model with trained weights, or as it is where none were better."""
        from onnxcompress.finetune.job import distil

        self._progress.stage("finetune")
        teacher = self._prepared.source.model
        result = distil(model, teacher, self._data, self._settings, self._progress)
        if not result.improved:
            self._progress.note("fine-tuning is left out: no epoch came closer to the original")
        return result


def require_torch() -> None:
    """Say what is missing.

    Raises:
        UsageError: PyTorch is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UsageError(MISSING) from error
