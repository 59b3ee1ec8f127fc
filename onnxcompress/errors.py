"""The one tree of errors; each class carries the exit code of the command line.

A message is one line that says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from typing import Any, ClassVar


class OnnxCompressError(Exception):
    """Anything that onnxcompress refuses to do, or could not do."""

    exit_code: ClassVar[int] = 1


class BoundError(OnnxCompressError):
    """No model meets the bounds asked for (accuracy, target), or nothing could be gained.

    Attributes:
        report: the report of the best attempt, if one was measured.
    """

    exit_code = 1

    def __init__(self, message: str, report: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = report


class UsageError(OnnxCompressError, ValueError):
    """An option or argument makes no sense."""

    exit_code = 2


class ModelError(OnnxCompressError, ValueError):
    """The model is unreadable, invalid or unsupported."""

    exit_code = 3


class GradientError(ModelError):
    """A gradient is asked for that the network's operators do not give."""


class DataError(OnnxCompressError, ValueError):
    """The data is unreadable, or does not fit the model."""

    exit_code = 4


class ProviderError(OnnxCompressError, RuntimeError):
    """The execution provider asked for is not there, or would not run every compute node."""

    exit_code = 5


class OutputError(OnnxCompressError, OSError):
    """The result cannot be written."""

    exit_code = 6


class PassError(OnnxCompressError, RuntimeError):
    """A pass raised, or broke its contract; names the pass and the node."""

    exit_code = 3
