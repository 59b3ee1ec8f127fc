"""Facts that can look at calibration inputs."""

from __future__ import annotations

from pathlib import Path

from onnxcompress.analyse.facts import Facts
from onnxcompress.calibrate.activations import CollectedActivations
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.moments import SAMPLES, CollectedMoments
from onnxcompress.calibrate.sensitivity import CollectedSensitivity
from onnxcompress.progress import Progress, Silent
from onnxcompress.runtime import Execution


def with_collectors(
    facts: Facts,
    data: Dataset,
    execution: Execution,
    seed: int,
    *,
    observed: int = 256,
    samples: int = 1024,
    ablated: int = 256,
    patched: int = SAMPLES,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Facts:
    """The same facts, with statistics, moments and gradients on `data` when asked for.

    Args:
        facts: the facts about a model in canonical form.
        data: calibration inputs.
        execution: provider and threads.
        seed: which samples are taken, and every random choice.
        observed: how many samples statistics of activations are taken of, at most.
        samples: how many samples gradients are taken of, at most.
        ablated: how many samples channels are ablated on, at most.
        patched: how many samples moments are taken of, at most.
        cache: folder in which moments are kept between runs, or None.
        progress: told how far the ablation is.
    """
    model, shapes = facts.model, facts.shapes()
    activations = CollectedActivations(model, shapes, data, execution, seed, observed)
    sensitivity = CollectedSensitivity(
        model, shapes, data, execution, seed, samples, ablated, progress or Silent()
    )
    moments = CollectedMoments(
        model, shapes, data, execution, seed, patched, cache, progress or Silent()
    )
    return facts.with_activations(activations).with_sensitivity(sensitivity).with_moments(moments)
