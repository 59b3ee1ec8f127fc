"""Collecting moments of layers on calibration inputs: one walk over the network, float64."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from onnxcompress.analyse.linear import LinearLayer, linear_layer
from onnxcompress.analyse.moments import Moments
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.patches import (
    Positions,
    answers_at,
    patches_at,
    spatial_extents,
)
from onnxcompress.calibrate.sample_batches import batch_size
from onnxcompress.calibrate.sums import Sums
from onnxcompress.calibrate.walk import Shelf, Walk
from onnxcompress.errors import ModelError
from onnxcompress.graph.digest import model_digest
from onnxcompress.graph.view import GraphView
from onnxcompress.numerics.shrinkage import ENOUGH, shrunk
from onnxcompress.progress import Progress, Silent
from onnxcompress.runtime import Array, Execution

SAMPLES = 1024
ROWS = 2**15
ROWS_PER_FEATURE = 16
"""Positions per layer that are looked at: the larger of the two bounds."""

_BATCH = 64
_BATCH_BYTES = 2**28


def drawn_feeds(
    model: onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]],
    data: Dataset,
    seed: int,
    samples: int = SAMPLES,
) -> list[dict[str, Array]]:
    """A random part of the calibration inputs, batch by batch.

    Args:
        model: the canonical model.
        shapes: shape of every tensor at the representative sizes, to plan memory by.
        data: the calibration inputs.
        seed: which samples are taken.
        samples: how many, at most.
    """
    unit = data.fixed_batch or 1
    count = max(1, min(samples, len(data)) // unit) * unit
    # Folders are sorted by class: in random order, the first few batches are of all classes.
    part = data.take(np.random.default_rng(seed).permutation(len(data))[:count])
    size = batch_size(model, part, shapes, _BATCH_BYTES, _BATCH)
    return [feeds for feeds, _ in part.batches(size)]


@dataclass(frozen=True)
class CollectedMoments:
    """Moments of one network's layers on a random part of the calibration inputs.

    Attributes:
        model: the canonical model.
        shapes: shape of every tensor at the representative sizes, to plan memory by.
        data: the calibration inputs.
        execution: provider and threads.
        seed: which samples and positions are looked at.
        samples: how many samples, at most.
        cache: folder in which moments of the model itself are kept between runs, or None.
        progress: told how far the collection is.
    """

    model: onnx.ModelProto
    shapes: Mapping[str, tuple[int, ...]]
    data: Dataset
    execution: Execution
    seed: int
    samples: int = SAMPLES
    cache: Path | None = None
    progress: Progress = field(default_factory=Silent)

    def __call__(
        self, layers: Sequence[str], model: onnx.ModelProto | None = None
    ) -> dict[str, Moments]:
        """Collect; see `MomentsCollector`."""
        view = GraphView(model or self.model)
        wanted = set(layers)
        specs = [linear_layer(n, view) for n in view.model.graph.node if n.name in wanted]
        missing = wanted - {spec.node for spec in specs}
        if missing:
            raise ModelError(f"node '{min(missing)}' is not in the graph")
        found: dict[str, Moments] = {}
        shelf = Shelf()
        walk = Walk(view.model, self.feeds, self.execution, shelf)
        beside = Walk(self.model, self.feeds, self.execution, shelf) if model is not None else None
        for number, layer in enumerate(specs):
            if beside is not None:
                found[layer.node] = self._collect(layer, walk, beside)
            else:
                stored = self._stored(layer)
                if stored is not None and stored.exists():
                    found[layer.node] = _load(stored)
                else:
                    found[layer.node] = self._own(layer, view, walk)
                    if stored is not None:
                        _save(stored, found[layer.node])
            self.progress.step(number + 1, len(specs))
        return found

    @cached_property
    def feeds(self) -> list[dict[str, Array]]:
        """The samples, batch by batch."""
        return drawn_feeds(self.model, self.shapes, self.data, self.seed, self.samples)

    @cached_property
    def _key(self) -> str:
        """What the moments depend on besides the layer."""
        parts = (model_digest(self.model), self.data.fingerprint(), self.seed, self.samples, ENOUGH)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]

    def _stored(self, layer: LinearLayer) -> Path | None:
        if self.cache is None:
            return None
        name = hashlib.sha256(layer.node.encode()).hexdigest()[:16]
        return self.cache / self._key / f"{name}.npz"

    def _own(self, layer: LinearLayer, view: GraphView, walk: Walk) -> Moments:
        """Moments of a layer with its own answers, which follow from what it reads."""
        seen = _believable(self._collect(layer, walk, None))
        matrices = layer.matrices(view.array(layer.spec.weight))
        bias = layer.bias(view)
        offset = np.zeros(matrices.shape[:2]) if bias is None else bias.reshape(matrices.shape[:2])
        reached = np.einsum("ghd,gd->gh", matrices, seen.mean)
        products = matrices @ seen.gram
        return Moments(
            seen.gram,
            seen.mean,
            products + offset[:, :, np.newaxis] * seen.mean[:, np.newaxis],
            reached + offset,
            np.einsum("ghd,ghd->gh", products, matrices) + 2.0 * offset * reached + offset**2,
            seen.rows,
        )

    def _collect(self, layer: LinearLayer, walk: Walk, beside: Walk | None) -> Moments:
        """Moments with the answers of the original; with none where there is nothing beside."""
        outputs = layer.outputs if beside is not None else 0
        sums = Sums(layer.node, layer.groups, outputs, layer.features)
        each = positions_per_sample(layer, self.feeds)
        chance = np.random.default_rng([self.seed, *layer.node.encode()])
        source = beside or walk
        both = (
            zip(walk.batches([layer.input]), source.batches([layer.output]), strict=True)
            if beside is not None
            else ((values, values) for values in walk.batches([layer.input, layer.output]))
        )
        for values, originals in both:
            read, answer = values[layer.input], originals[layer.output]
            at = Positions.draw(spatial_extents(layer, answer.shape), len(read), each, chance)
            patches = patches_at(layer, read, at)
            rows = answers_at(layer, answer, at) if outputs else np.empty((len(patches), 0))
            sums.add(patches, rows.reshape(len(patches), layer.groups, outputs))
        return sums.moments()


def _believable(seen: Moments) -> Moments:
    """Moments of which correlations are no more than the rows bear out."""
    if seen.rows >= ENOUGH * seen.gram.shape[1]:
        return seen
    covariances = [shrunk(one, seen.rows) for one in seen.centred().gram]
    middle = seen.mean[:, :, np.newaxis] * seen.mean[:, np.newaxis]
    return replace(seen, gram=np.stack(covariances) + middle)


def positions_per_sample(
    layer: LinearLayer, feeds: Sequence[Mapping[str, Array]], least: int = ROWS
) -> int:
    """How many positions of a layer's output are looked at in every sample.

    Args:
        layer: the layer.
        feeds: the samples, batch by batch.
        least: positions of all samples together, at least.
    """
    samples = sum(len(next(iter(batch.values()))) for batch in feeds)
    return -(-max(least, ROWS_PER_FEATURE * layer.features * least // ROWS) // samples)


def _save(path: Path, moments: Moments) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, rows=moments.rows, **{n: getattr(moments, n) for n in _ARRAYS})
    part.replace(path)


def _load(path: Path) -> Moments:
    with np.load(path) as stored:
        return Moments(**{name: stored[name] for name in _ARRAYS}, rows=int(stored["rows"]))


_ARRAYS = ("gram", "mean", "cross", "answer", "energy")
