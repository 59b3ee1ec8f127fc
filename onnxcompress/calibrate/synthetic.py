"""Synthetic calibration inputs, for when there are none: noise with the spectrum of photographs.

The power of natural images falls with the square of the spatial frequency (Field 1987); noise of
that spectrum makes neighbouring pixels alike, as layers expect them. Nothing can be verified on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.errors import DataError
from onnxcompress.runtime import Array

SAMPLES = 256
_FORM = re.compile(r"random(?::([1-9][0-9]*))?")


def asked_for(text: str) -> int | None:
    """How many synthetic samples a SPEC asks for (`random` or `random:N`); None if it does not."""
    match = _FORM.fullmatch(text)
    return int(match[1] or SAMPLES) if match else None


def synthetic_inputs(
    inputs: Sequence[InputSpec],
    sizes: Mapping[str, Sequence[int]],
    count: int,
    seed: int,
) -> dict[str, Array]:
    """Samples for every input: zero mean, unit variance, smooth along the axes behind channels.

    Args:
        inputs: the inputs of the model.
        sizes: sizes of dynamic inputs, by name.
        count: how many samples.
        seed: of the noise.

    Raises:
        DataError: an input is not floating point, or a dimension is not known.
    """
    chance = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for spec in inputs:
        if spec.dtype.kind != "f":
            raise DataError(f"--data random: input {spec.name!r} holds {spec.dtype}, not numbers")
        given = sizes.get(spec.name)
        shape = tuple(given) if given else tuple(spec.fixed(a) or 0 for a in range(len(spec.shape)))
        if not all(shape[1:]):
            raise DataError(
                f"--data random: input {spec.name!r} {list(spec.shape)} has open dimensions: give "
                "its size with --shape"
            )
        noise: NDArray[np.float64] = chance.standard_normal((count, *shape[1:]))
        for axis in range(2, noise.ndim):
            noise = _smoothed(noise, axis)
        axes = tuple(range(1, noise.ndim))
        noise /= np.maximum(noise.std(axis=axes, keepdims=True), 1e-12)
        found[spec.name] = noise.astype(spec.dtype)
    return found


def _smoothed(noise: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Amplitudes divided by the frequency along one axis."""
    spectrum = np.fft.rfft(noise, axis=axis)
    weights = 1.0 / np.maximum(np.arange(spectrum.shape[axis]), 1.0)
    lined = [1] * noise.ndim
    lined[axis] = -1
    smooth = np.fft.irfft(spectrum * weights.reshape(lined), noise.shape[axis], axis=axis)
    return np.asarray(smooth, dtype=np.float64)
