"""Which filters of a layer answer alike: trees of filters, and pictures of them.

Sehgal, "Analyzing the compressibility of CNN kernels with program induction" (2022), clusters the
filters of a layer by the structural similarity of their responses to real inputs, and asks how the
programs that a network learned can be seen. A tree shows which filters join, and how far apart they
were; under its leaves lie the filters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram

from onnxcompress.errors import ModelError
from onnxcompress.numerics.clustering import cut_at, merges
from onnxcompress.numerics.ssim import similarities

Array = NDArray[np.float64]

DISTANCES = (0.3, 0.6, 0.9)
"""1 - SSIM at which the filters that are left are counted."""


MOST_DRAWN = 512
"""Filters of a tree that is drawn, at most: SciPy calls itself for every level of it."""


@dataclass(frozen=True)
class FilterTree:
    """The filters of a layer by how alike their responses are.

    Attributes:
        node: the layer.
        tree: SciPy's linkage matrix, [filters - 1, 4], distances 1 - SSIM, average linkage.
        kernels: what a filter does in space, [filters, k, k]: its first spatial mode.
    """

    node: str
    tree: Array
    kernels: Array

    def left(self, distance: float) -> int:
        """How many filters are left where those join that are no farther apart."""
        return int(cut_at(self.tree, distance).max()) + 1


def filter_tree(node: str, weight: Array, responses: NDArray[np.generic]) -> FilterTree:
    """Compare the filters of a layer.

    Args:
        node: the layer.
        weight: [filters, channels, k, k], at least two filters.
        responses: what it answers to some inputs, [samples, filters, height, width].

    Raises:
        ModelError: some answers are no finite numbers.
    """
    if not np.isfinite(responses).all():
        raise ModelError(f"'{node}' answers with numbers that are not finite")
    images = responses.astype(np.float64)
    extent = float(images.max() - images.min())
    apart = 1.0 - similarities(images, extent or 1.0)
    np.fill_diagonal(apart, 0.0)
    return FilterTree(node, merges(np.maximum(apart, 0.0)), spatial_modes(weight))


def spatial_modes(weight: Array) -> Array:
    """The kernel that the kernels of each filter are most alike to, up to factors.

    Args:
        weight: [filters, channels, k, k].

    Returns:
        [filters, k, k], of unit norm; the sign that of most of its kernels, by energy.
    """
    filters, _, *kernel = weight.shape
    found = np.empty((filters, *kernel))
    for number, kernels in enumerate(weight.reshape(filters, weight.shape[1], -1)):
        left, values, right = np.linalg.svd(kernels, full_matrices=False)
        shares = left[:, 0] * values[0]
        sign = np.sign((shares * np.abs(shares)).sum()) or 1.0
        found[number] = (sign * right[0]).reshape(kernel)
    return found


def draw_tree(part: Any, tree: FilterTree) -> None:
    """A tree with the filters under its leaves.

    Args:
        part: a figure or subfigure of Matplotlib's.
        tree: what is drawn.
    """
    above, below = part.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    found = dendrogram(tree.tree, ax=above, no_labels=True, color_threshold=DISTANCES[1])
    above.set_ylabel("1 - SSIM", fontsize=7)
    above.tick_params(labelsize=6)
    counts = ", ".join(f"{tree.left(d)} at {d:g}" for d in DISTANCES)
    above.set_title(
        f"{tree.node}: {len(tree.kernels)} filters; left: {counts}", fontsize=8, loc="left"
    )
    kernels = tree.kernels[found["leaves"]]
    limits = np.abs(kernels).max(axis=(1, 2), keepdims=True)
    # A margin of nothing around every kernel.
    tiles = np.pad(kernels / np.where(limits > 0, limits, 1.0), [(0, 0), (0, 0), (0, 1)])
    strip = np.concatenate(list(tiles), axis=1)
    # SciPy puts leaves ten apart, the first at five.
    below.imshow(
        strip, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", extent=(0, 10 * len(kernels), 0, 1)
    )
    below.set_axis_off()
