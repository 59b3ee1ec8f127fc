"""`derive`: a family of narrower networks from one, in Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxcompress.api import execution_of, sizes_of, spec_of
from onnxcompress.config import SAMPLES, Config
from onnxcompress.errors import UsageError
from onnxcompress.load.source import ModelSource
from onnxcompress.plan.registry import make_pass
from onnxcompress.progress import Progress, Silent
from onnxcompress.report.write import commit, json_job, make_folder
from onnxcompress.runtime import default_threads
from onnxcompress.search.driver import OWNER, Request, search
from onnxcompress.search.executors import Executor, Processes, Serial
from onnxcompress.search.ray_executor import RayCluster
from onnxcompress.search.results import Family, plotted

EXECUTORS = ("serial", "processes", "ray")


def derive(
    model: ModelSource,
    folder: str | Path,
    *,
    data: Any,
    eval_data: Any = None,
    segments: str | int = "auto",
    ratios: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
    constraint: str = "none",
    candidates: int = 12,
    also: Iterable[Sequence[float]] = (),
    ranking: str = "lnr",
    within: str = "inner",
    round_to: int = 8,
    executor: str | Executor = "processes",
    workers: int | None = None,
    address: str | None = None,
    metric: str | None = None,
    preprocess: str | None = None,
    providers: Sequence[str] | str = ("cpu",),
    threads: int | None = None,
    shapes: Mapping[str, Sequence[int]] | Iterable[str] = (),
    batch: int | None = None,
    repair: str = "refit",
    finetune: str | None = None,
    samples: int = SAMPLES,
    exclude: Iterable[str] = (),
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Family:
    """Derive networks of several widths from a model, and write them with tables to a folder.

    Args:
        model: path, bytes, binary stream, ModelProto or gs.Graph; never changed.
        folder: where models, plans, `search.csv`, `search.json`, `pareto.png` and the store go.
            What is there already of the same search is not done again.
        data: calibration inputs, as for `compress`.
        eval_data: held-out inputs for the verdict; without it a tenth of `data` is held out.
        segments: superblocks: auto, widths, resolutions, a number of bins, or a YAML file.
        ratios: width modifiers of every superblock.
        constraint: none, non-increasing, an expression over c1, c2, ..., or a YAML file of them.
        candidates: networks that are built and measured, at most.
        also: ratios per superblock of networks that are built in any case.
        ranking: which channels stay: lnr, or a criterion of pass `prune`.
        within: what of a superblock is narrowed: inner or even.
        round_to: widths are multiples of this.
        executor: serial, processes, ray, or an executor of your own.
        workers: how many networks at a time; default: one per processor.
        address: of a running Ray cluster.
        metric: top1, top5, agreement or MODULE:FUNCTION.
        preprocess: how uint8 images become inputs, as text.
        providers: order of preference.
        threads: at which latency is measured; networks are built by one thread each.
        shapes: representative sizes for dynamic inputs, by name or as `name:d0,d1` texts.
        batch: batch at which a dynamic first dimension is measured.
        repair: as for `compress`.
        finetune: train every network that is built towards the seed network's answers, for epochs
            (`3e`) or minutes (`20m`, whose results are never quite the same).
        samples: inputs of `data` that moments and repair look at, at most.
        exclude: regular expressions of node names to leave alone.
        seed: for every random choice.
        force: begin again where the folder holds another search.
        progress: told what happens.

    Returns:
        The derived networks with all that was measured of them, and which of them no other beats.

    Raises:
        BoundError: no superblock can be narrowed, or the constraint allows nothing.
        OnnxCompressError: the model, the data, the provider, an option or a worker is at fault.
    """
    progress, folder = progress or Silent(), Path(folder)
    owner = make_pass(
        OWNER,
        segments=segments,
        ratios="+".join(f"{ratio:g}" for ratio in ratios),
        ranking=ranking,
        within=within,
        round_to=round_to,
    )
    config = Config(
        passes=(make_pass("exact"), owner),
        data=spec_of(data),
        eval_data=spec_of(eval_data),
        preprocess=preprocess,
        metric=metric,
        execution=execution_of(providers, threads),
        shapes=sizes_of(shapes),
        batch=batch,
        repair=repair,
        finetune=finetune,
        samples=samples,
        exclude=tuple(exclude),
        seed=seed,
    )
    if isinstance(executor, str):
        executor = make_executor(executor, workers, address)
    make_folder(folder)
    request = Request(
        folder=folder,
        constraint=constraint,
        count=candidates,
        also=tuple(tuple(float(ratio) for ratio in one) for one in also),
        executor=executor,
        force=force,
    )
    family = search(model, config, request, progress)
    jobs = [
        json_job(family.to_dict(), folder / "search.json"),
        (folder / "search.csv", lambda file: file.write(family.to_csv().encode())),
    ]
    try:
        picture = plotted(family)
        jobs.append((folder / "pareto.png", lambda file: file.write(picture)))
    except UsageError as error:
        progress.note(str(error))
    commit(jobs)
    return family


def make_executor(name: str, workers: int | None = None, address: str | None = None) -> Executor:
    """An executor by name.

    Args:
        name: serial, processes or ray.
        workers: how many at a time; None for one per processor.
        address: of a running Ray cluster.

    Raises:
        UsageError: what it takes is not installed, or an option does not go with it.
    """
    if name not in EXECUTORS:
        raise UsageError(f"executor '{name}' is none of {', '.join(EXECUTORS)}")
    if address is not None and name != "ray":
        raise UsageError(f"--address goes with --executor ray, not {name}")
    if name == "ray":
        return RayCluster(address, workers)
    if name == "serial":
        if workers not in (None, 1):
            raise UsageError("--executor serial has one worker: --executor processes has more")
        return Serial()
    count = workers or default_threads()
    return Processes(count) if count > 1 else Serial()
