"""What a plan says about one site of the pass `dsl`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcompress.errors import UsageError
from onnxcompress.kernels.language import HORIZONTAL, VERTICAL
from onnxcompress_passes.dsl.clusters import Clusters
from onnxcompress_passes.low_rank_pass import DATA, WEIGHTS


@dataclass(frozen=True)
class Sharing:
    """What is shared.

    Attributes:
        labels: cluster of every channel of a group; none where kernels are shared.
        shares: part that each channel's own filter has in its cluster's.
        entries: how many kernels a layer's dictionary has; 0 where there is none.
        atoms: how many atoms all kernels of a layer are mixed of; 0 where they are not.
        edges: how the edges of all kernels of a layer lie; empty where they are no edge filters.
        price: of a bit, where kernels are programs; -1 where they are not.
        metric: what an error of a kernel counts: "weights", or "data" (the layer's answers).
    """

    labels: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()
    entries: int = 0
    atoms: int = 0
    edges: str = ""
    price: float = -1.0
    metric: str = WEIGHTS

    @property
    def clusters(self) -> Clusters:
        """The filters that are shared."""
        return Clusters(self.labels, self.shares)


def read_sharing(values: Any) -> Sharing:
    """A setting from the plan file.

    `{"labels": [0, 0, 1], "shares": [0.5, 0.5, 1]}`, `{"entries": 16, "metric": "data"}`,
    `{"atoms": 3, "metric": "data"}`, `{"edges": "vertical", "metric": "data"}`, or
    `{"price": 1e-6, "metric": "data"}`.

    Raises:
        UsageError: the values do not fit.
    """
    known = {"labels", "shares", "entries", "atoms", "edges", "price", "metric"}
    if not isinstance(values, dict) or not set(values) <= known:
        raise UsageError(f"setting {str(values)[:200]} does not fit pass 'dsl'")
    labels, shares = values.get("labels", ()), values.get("shares", ())
    entries, metric = values.get("entries", 0), values.get("metric", WEIGHTS)
    atoms, price = values.get("atoms", 0), values.get("price", -1.0)
    edges = values.get("edges", "")
    listed = (
        isinstance(labels, (list, tuple))
        and isinstance(shares, (list, tuple))
        and len(labels) == len(shares)
        and all(type(label) is int for label in labels)
        and all(type(share) in {int, float} for share in shares)
    )
    fits = listed and type(entries) is int and type(atoms) is int and metric in {DATA, WEIGHTS}
    fits = fits and type(price) in {int, float} and (price == -1 or 0 <= price < float("inf"))
    fits = fits and edges in {"", VERTICAL, HORIZONTAL}
    kinds = (bool(labels), entries > 0, atoms > 0, edges != "", price >= 0) if fits else ()
    fits = fits and sum(kinds) == 1 and min(entries, atoms) >= 0
    if fits and labels:
        numbered = sorted(set(labels)) == list(range(max(labels) + 1))
        fits = numbered and np.allclose(np.bincount(labels, shares), 1.0)
    if not fits:
        raise UsageError(f"setting {str(values)[:200]} does not fit pass 'dsl'")
    parts = tuple(float(share) for share in shares)
    return Sharing(tuple(labels), parts, entries, atoms, edges, float(price), metric)
