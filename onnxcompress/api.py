"""The Python interface: `compress`, `saliency`, and `use` to name a pass with options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxcompress.analyse.sizes import input_specs, parse_shape
from onnxcompress.calibrate.inputs import open_data
from onnxcompress.config import DEFAULT_MAX_DROP, DEFAULT_MIN_SNR, SAMPLES, Config
from onnxcompress.load.source import ModelSource, read_source
from onnxcompress.numerics.blas_threads import one_blas_pool
from onnxcompress.pipeline import Result
from onnxcompress.plan.contract import Pass
from onnxcompress.plan.recipes import BALANCED, recipe
from onnxcompress.plan.registry import make_pass, parse_pass
from onnxcompress.plan.targets import check_targets
from onnxcompress.progress import Progress
from onnxcompress.runtime import Execution, default_threads
from onnxcompress.stages import run_in_stages
from onnxcompress.study import Study, study


def use(name: str, **options: Any) -> Pass[Any]:
    """A registered pass with options, as in `use("tucker2", rank="energy:0.9")`.

    Raises:
        UsageError: unknown pass or option.
    """
    return make_pass(name, **options)


def compress(
    model: ModelSource,
    *,
    data: Any = None,
    eval_data: Any = None,
    passes: Iterable[str | Pass[Any]] | None = None,
    recipe_name: str = BALANCED,
    target: Mapping[str, float] | None = None,
    max_drop: float = DEFAULT_MAX_DROP,
    min_snr: float = DEFAULT_MIN_SNR,
    confidence: float | None = None,
    metric: str | None = None,
    preprocess: str | None = None,
    providers: Sequence[str] | str = ("cpu",),
    threads: int | None = None,
    shapes: Mapping[str, Sequence[int]] | Iterable[str] = (),
    batch: int | None = None,
    gate: bool | None = None,
    repair: str = "refit",
    samples: int = SAMPLES,
    exclude: Iterable[str] = (),
    finetune: str | None = None,
    stages: int = 1,
    then: str | None = None,
    plan: str | Path | None = None,
    run_dir: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Compress a model and prove the result.

    Args:
        model: path, bytes, binary stream, ModelProto or gs.Graph; never changed.
        data: calibration inputs: a SPEC as on the command line, an array, arrays by input name
            (labels under `y`), or a Dataset. Without it only data-free forms are used and
            accuracy is not verified.
        eval_data: held-out inputs for the verdict; without it a tenth of `data` is held out.
        passes: names, `NAME:key=value,...` texts, or passes made by `use`; default: the recipe.
        recipe_name: `balanced`, `fast`, `smallest`, or the path of a YAML recipe.
        target: fraction of the original that may remain, by kind: latency, macs, params, size.
        max_drop: points of the metric that may be lost.
        min_snr: dB demanded of outputs of networks that make no class decision.
        confidence: judge the bad end of the paired interval at this level.
        metric: top1, top5, agreement or MODULE:FUNCTION.
        preprocess: how uint8 images become inputs, as text.
        providers: order of preference, as a sequence or as text like "cuda,cpu".
        threads: intra-operator threads; default: all processors this process may use.
        shapes: representative sizes for dynamic inputs, by name or as `name:d0,d1` texts.
        batch: batch at which a dynamic first dimension is measured.
        gate: time every rewrite and keep the faster ones; default: yes, unless the only targets
            are MACs, parameters or size.
        repair: fit the layers behind lossy rewrites again on `data`: refit (their weights), fisher
            (refit, low-rank layers by what the network's answer sees of their errors), scale (only
            a scale and a bias per channel) or off.
        samples: inputs of `data` that moments and repair look at, at most.
        exclude: regular expressions of node names to leave alone.
        finetune: train the result towards the original's answers, without labels, for epochs (`3e`)
            or minutes (`20m`). With targets, accuracy is judged after it only. Needs the extra
            `finetune`.
        stages: reach the targets in so many steps, each planned, repaired and trained on what the
            one before left; the effort of training is shared.
        then: fp16 or int8: convert the result by ONNX Runtime's own converters; targets and bounds
            hold for what comes out.
        plan: replay this plan file.
        run_dir: folder that keeps measured latencies and the plan.
        seed: for every random choice.
        progress: told what happens.

    Returns:
        The model, its plan, the report and the verdict.

    Raises:
        BoundError: no result meets the bounds, or nothing could be gained.
        OnnxCompressError: the model, the data, the provider or an option is at fault.
    """
    if passes is None:
        chosen = recipe(recipe_name, targeted=bool(target))
    else:
        chosen = tuple(map(_as_pass, passes))
    config = Config(
        passes=chosen,
        targets=check_targets(target or {}),
        max_drop=max_drop,
        min_snr=min_snr,
        confidence=confidence,
        data=spec_of(data),
        eval_data=spec_of(eval_data),
        preprocess=preprocess,
        metric=metric,
        execution=execution_of(providers, threads),
        shapes=sizes_of(shapes),
        batch=batch,
        gate=gate,
        repair=repair,
        samples=samples,
        exclude=tuple(exclude),
        finetune=finetune,
        stages=stages,
        then=then,
        plan=Path(plan) if plan is not None else None,
        run=Path(run_dir) if run_dir is not None else None,
        seed=seed,
    )
    return run_in_stages(model, config, progress)


@one_blas_pool()
def saliency(
    model: ModelSource,
    data: Any,
    *,
    criteria: Iterable[str] = (),
    reference: str = "oracle-abs",
    samples: int = 1024,
    oracle_samples: int = 256,
    preprocess: str | None = None,
    providers: Sequence[str] | str = ("cpu",),
    threads: int | None = None,
    exclude: Iterable[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Study:
    """Score every channel by every criterion, and compare each with the oracle.

    Args:
        model: path, bytes, binary stream, ModelProto or gs.Graph; never changed.
        data: a SPEC as on the command line, an array, arrays by input name (labels under `y`), or
            a Dataset. Without labels the loss is held to the model's own answers.
        criteria: names; none for all that this model and data allow.
        reference: the criterion that the others are compared with.
        samples: samples that gradients are taken of, at most.
        oracle_samples: samples that the oracle ablates channels on, at most.
        preprocess: how uint8 images become inputs, as on the command line.
        providers: providers in order of preference.
        threads: of the CPU provider; default: all processors this process may use.
        exclude: regular expressions of layers to leave out (names of nodes).
        seed: which samples are taken, and every random choice.
        progress: told what happens.

    Returns:
        The scores, and Spearman's rank correlations.

    Raises:
        GradientError: a criterion that was asked for needs an operator's gradient that is not
            known; the message names both, and the criteria that still work.
        OnnxCompressError: the model, the data, the provider or an option is at fault.
    """
    given = read_source(model)
    spec = str(data) if isinstance(data, Path) else data
    return study(
        given.model,
        open_data(spec, input_specs(given.model), preprocess, "data"),
        criteria=tuple(criteria),
        reference=reference,
        samples=samples,
        ablated=oracle_samples,
        exclude=tuple(exclude),
        execution=execution_of(providers, threads),
        seed=seed,
        progress=progress,
    )


def sizes_of(
    shapes: Mapping[str, Sequence[int]] | Iterable[str],
) -> dict[str, tuple[int, ...]]:
    """Representative sizes by input name, from a mapping or from `name:d0,d1` texts."""
    if isinstance(shapes, Mapping):
        return {name: tuple(size) for name, size in shapes.items()}
    return dict(parse_shape(text) for text in shapes)


def spec_of(data: Any) -> Any:
    """Data as a job takes it: paths as texts."""
    return str(data) if isinstance(data, Path) else data


def execution_of(providers: Sequence[str] | str, threads: int | None) -> Execution:
    """Providers in order of preference, as a sequence or as text like "cuda,cpu"."""
    names = providers.split(",") if isinstance(providers, str) else providers
    count = default_threads() if threads is None else threads
    return Execution(tuple(name.strip() for name in names), count)


def _as_pass(entry: str | Pass[Any]) -> Pass[Any]:
    return parse_pass(entry) if isinstance(entry, str) else entry
