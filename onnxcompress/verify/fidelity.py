"""How far a candidate network's outputs are from the reference's, on the same inputs.

Energies are summed in float64 per sample, so the result does not depend on how the samples were
batched, and the signal-to-noise ratio can be resampled sample by sample. An output that is not
floating-point counts one unit of signal per element and one unit of noise per mismatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, inf, isfinite, log10, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.errors import DataError, ModelError
from onnxcompress.verify.intervals import FloatArray, json_number

Array = npt.NDArray[Any]

# Some outputs are zero nearly everywhere: per element, this much of signal is taken for granted.
_SIGNAL_FLOOR = 1e-2


@dataclass(frozen=True)
class OutputFidelity:
    """The distance between two networks' values a (reference) and b (candidate) of one output.

    Attributes:
        name: Name of the graph output.
        max_abs: Largest |a - b|.
        relative_l2: ‖a - b‖ / max(‖a‖, 0.01·√elements); the floor keeps it finite and meaningful
            for outputs that are zero nearly everywhere.
        snr_db: 10·log10(‖a‖² / ‖a - b‖²); infinite when the outputs are equal.
        elements: How many values were compared.
        non_finite: Positions at which a value is NaN or infinite and the other is not the same
            infinity. Any such position makes the distances infinitely bad, as does an energy
            beyond float64. The same infinity in both (a mask) is no difference; NaN never equals
            NaN.
        mismatches: Values that differ, for outputs that are not floating-point; else None.
    """

    name: str
    max_abs: float
    relative_l2: float
    snr_db: float
    elements: int
    non_finite: int
    mismatches: int | None = None

    @property
    def is_finite(self) -> bool:
        """Whether no NaN and no infinity sets the two networks apart."""
        return self.non_finite == 0

    def to_dict(self) -> dict[str, Any]:
        """The distances as JSON-serialisable values; infinity is ``"inf"``, NaN is null."""
        return {
            "name": self.name,
            "max_abs": json_number(self.max_abs),
            "relative_l2": json_number(self.relative_l2),
            "snr_db": json_number(self.snr_db),
            "elements": self.elements,
            "non_finite": self.non_finite,
            "mismatches": self.mismatches,
        }


@dataclass(frozen=True)
class Energies:
    """Per-sample energies [N] of one output: of the reference, and of the difference to it."""

    signal: FloatArray
    noise: FloatArray


class FidelityAccumulator:
    """Compares outputs batch by batch and holds no outputs, only two numbers per sample."""

    def __init__(self, names: Sequence[str]) -> None:
        """Prepare for the graph outputs ``names``, in graph order."""
        self._outputs = tuple(_OutputSums(name) for name in names)

    def add(
        self,
        reference_outputs: Sequence[Array],
        candidate_outputs: Sequence[Array],
        *,
        samples: int | None = None,
    ) -> None:
        """Take one batch into account.

        Args:
            reference_outputs: The reference network's outputs, in graph order.
            candidate_outputs: The candidate's outputs for the same inputs.
            samples: Samples in the batch; outputs that lead with another extent (a score map,
                say) are then not mistaken for that many samples.

        Raises:
            ModelError: The candidate's outputs differ in number, shape or type.
        """
        expected = len(self._outputs)
        for whose, outputs in (("reference", reference_outputs), ("candidate", candidate_outputs)):
            if len(outputs) != expected:
                raise ModelError(
                    f"the {whose} network gave {len(outputs)} outputs instead of {expected}: "
                    "both networks must have the same outputs"
                )
        references = [np.asarray(values) for values in reference_outputs]
        candidates = [np.asarray(values) for values in candidate_outputs]
        for output, reference, candidate in zip(self._outputs, references, candidates, strict=True):
            _check_alike(output.name, reference, candidate)
        leading = sample_count(references)
        count = leading if leading and samples in {None, leading} else 1
        for output, reference, candidate in zip(self._outputs, references, candidates, strict=True):
            output.add(reference, candidate, count)

    def energies(self) -> tuple[Energies, ...]:
        """Per-sample energies of every output, in graph order.

        A batch whose outputs share no leading extent counts as one sample: its outputs cannot be
        told apart by sample.

        Raises:
            DataError: No batch was added.
        """
        return tuple(output.energies() for output in self._outputs)

    def result(self) -> tuple[OutputFidelity, ...]:
        """The distances of every output, in graph order.

        Raises:
            DataError: No batch was added.
        """
        return tuple(output.result() for output in self._outputs)


def is_floating(values: Array) -> bool:
    """Whether ``values`` are floating-point numbers, which are compared by distance."""
    return bool(np.issubdtype(values.dtype, np.floating))


def sample_count(outputs: Sequence[Array]) -> int | None:
    """The leading extent that all outputs share, or None when they share none."""
    extents = {values.shape[:1] for values in outputs}
    shared = next(iter(extents)) if len(extents) == 1 else ()
    return int(shared[0]) if shared else None


class _OutputSums:
    """What is remembered of one output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._signal: list[FloatArray] = []
        self._noise: list[FloatArray] = []
        self._max_abs = 0.0
        self._elements = 0
        self._non_finite = 0
        self._mismatches: int | None = None

    def add(self, reference: Array, candidate: Array, samples: int) -> None:
        self._elements += reference.size
        if is_floating(reference):
            signal, difference = self._compare_floats(reference, candidate)
        else:
            differs = np.asarray(reference != candidate, dtype=bool)
            self._mismatches = (self._mismatches or 0) + int(np.count_nonzero(differs))
            signal, difference = np.ones(differs.shape), differs.astype(np.float64)
        self._max_abs = max(self._max_abs, float(np.max(np.abs(difference), initial=0.0)))
        self._signal.append(_energy(signal, samples))
        self._noise.append(_energy(difference, samples))

    def _compare_floats(self, reference: Array, candidate: Array) -> tuple[FloatArray, FloatArray]:
        """Signal and difference in float64, with non-finite values counted and taken out."""
        a, b = reference.astype(np.float64), candidate.astype(np.float64)
        finite = np.isfinite(a) & np.isfinite(b)
        self._non_finite += int(np.count_nonzero(~finite & (a != b)))
        a[~finite] = 0.0
        b[~finite] = 0.0
        return a, a - b

    def energies(self) -> Energies:
        if not self._signal:
            raise DataError(f"output {self.name!r} was never compared: give at least one sample")
        return Energies(np.concatenate(self._signal), np.concatenate(self._noise))

    def result(self) -> OutputFidelity:
        energies = self.energies()
        signal, noise = fsum(energies.signal), fsum(energies.noise)
        floor = _SIGNAL_FLOOR * sqrt(self._elements)
        relative, snr = 0.0, inf
        if noise:
            relative = sqrt(noise) / max(sqrt(signal), floor)
            snr = 10.0 * (log10(signal) - log10(noise)) if signal else -inf
        broken = self._non_finite > 0 or not isfinite(signal + noise)
        return OutputFidelity(
            name=self.name,
            max_abs=inf if broken else self._max_abs,
            relative_l2=inf if broken else relative,
            snr_db=-inf if broken else snr,
            elements=self._elements,
            non_finite=self._non_finite,
            mismatches=self._mismatches,
        )


def _energy(values: FloatArray, samples: int) -> FloatArray:
    """The sum of squares of every sample's values, [samples]."""
    with np.errstate(over="ignore"):
        squares = np.square(values.reshape(samples, -1))
        return np.asarray(np.sum(squares, axis=1), dtype=np.float64)


def _check_alike(name: str, reference: Array, candidate: Array) -> None:
    if reference.shape != candidate.shape:
        raise ModelError(
            f"output {name!r} has shape {candidate.shape} instead of {reference.shape}: "
            "the candidate network does not keep the interface"
        )
    # ONNX strings arrive as objects or as fixed-width text, whose width is part of the dtype.
    texts = reference.dtype.kind in "OUS" and candidate.dtype.kind in "OUS"
    if reference.dtype != candidate.dtype and not texts:
        raise ModelError(
            f"output {name!r} has type {candidate.dtype} instead of {reference.dtype}: "
            "the candidate network does not keep the interface"
        )
