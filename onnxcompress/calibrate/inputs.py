"""The data of a job: what choices are made on, and what the verdict is given on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnxcompress.analyse.sizes import InputSpec, input_specs
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.preprocess_text import parse_preprocess
from onnxcompress.calibrate.samples import sample_sizes
from onnxcompress.calibrate.spec import load_dataset
from onnxcompress.calibrate.synthetic import asked_for, synthetic_inputs

HELD_OUT = 0.1
"""Share of the calibration data kept for the verdict when there is no evaluation data."""


@dataclass(frozen=True)
class Inputs:
    """Data by purpose; the two never share a sample.

    Attributes:
        calibration: what choices are made on; None without `--data`.
        verdict: what the result is judged on; None leaves accuracy unverified.
        held_out: whether the verdict's samples were held out from the calibration data.
        sizes: size of one sample per input, for dynamic dimensions.
        synthetic: whether the calibration inputs were made up.
    """

    calibration: Dataset | None
    verdict: Dataset | None
    held_out: bool
    sizes: Mapping[str, tuple[int, ...]]
    synthetic: bool = False


def open_inputs(
    model: onnx.ModelProto,
    data: Any,
    eval_data: Any,
    *,
    preprocess: str | None,
    seed: int,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Inputs:
    """Open calibration and evaluation data for the inputs of `model`.

    Args:
        model: the model as it was given.
        data: calibration SPEC, arrays by input name, or Dataset; `random` or `random:N` for
            synthetic inputs, on which nothing is verified; or None.
        eval_data: the same for the verdict; None holds out a tenth of `data`.
        preprocess: text for uint8 images, applied to both.
        seed: decides which samples are held out.
        shapes: sizes of dynamic inputs, for synthetic ones.

    Raises:
        DataError: the data cannot be read or does not fit the model.
        UsageError: the preprocessing is not understood.
    """
    specs = input_specs(model)
    count = asked_for(data) if isinstance(data, str) and not Path(data).exists() else None
    if count is not None:
        made = synthetic_inputs(specs, shapes or {}, count, seed)
        given = open_data(eval_data, specs, preprocess, "--eval") if eval_data is not None else None
        rows = dataset_from_arrays(made, specs, purpose="--data", source=f"synthetic, {count}")
        return Inputs(rows, given, False, sample_sizes(rows), synthetic=True)
    calibration = open_data(data, specs, preprocess, "--data") if data is not None else None
    verdict = open_data(eval_data, specs, preprocess, "--eval") if eval_data is not None else None
    first = calibration or verdict
    sizes = sample_sizes(first) if first is not None else {}
    held_out = verdict is None and calibration is not None
    if verdict is None and calibration is not None:
        calibration, verdict = calibration.split(HELD_OUT, seed)
    return Inputs(calibration, verdict, held_out, sizes)


def open_data(
    data: Any, specs: tuple[InputSpec, ...], preprocess: str | None, purpose: str
) -> Dataset:
    """One dataset from a SPEC, from arrays, or as it is.

    Raises:
        DataError: the data cannot be read or does not fit the model.
    """
    recipe = parse_preprocess(preprocess)
    if isinstance(data, str):
        return load_dataset(data, specs, preprocess=recipe, purpose=purpose)
    return dataset_from_arrays(data, specs, preprocess=recipe, purpose=purpose)
