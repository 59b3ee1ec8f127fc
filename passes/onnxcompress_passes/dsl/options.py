"""The options of the pass `dsl`."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxcompress.errors import UsageError
from onnxcompress.numerics.clustering import LINKAGES
from onnxcompress.plan.contract import Pass
from onnxcompress_passes.dsl.clusters import CENTRES, MEAN
from onnxcompress_passes.dsl.filters import ANSWERS, DISTANCES
from onnxcompress_passes.dsl.setting import Sharing

FILTERS, KERNELS, ATOMS, EDGES = "filters", "kernels", "atoms", "edges"
LEARNED, PREDEFINED, BOTH = "learned", "predefined", "both"


@dataclass(frozen=True)
class DslOptions(Pass[Sharing]):
    """What can be asked of the pass `dsl`; values that do not go together are refused."""

    shared: str = field(
        default=FILTERS,
        metadata={
            "help": "filters (whole ones: layers become narrower), atoms (a few kernels per layer, "
            "that all others are mixed of: a grouped convolution and one of 1x1), edges (all "
            "kernels edge filters: a convolution along lines, and their sums), or kernels (a "
            "dictionary per layer, written as a function: the file becomes smaller, time stays)"
        },
    )
    source: str = field(
        default=LEARNED,
        metadata={
            "help": "of kernels: learned (a dictionary per layer), predefined (programs of edge "
            "filters and tetrominoes, original kernels where those do not pay), or both (layer by "
            "layer what errs less for its bytes)"
        },
    )
    price: float = field(
        default=0.0,
        metadata={
            "help": "source=predefined: part of a layer's squared answer that its original kernels "
            "would cost; 0 lets the plan choose"
        },
    )
    distance: str = field(
        default=ANSWERS,
        metadata={
            "help": "how filters compare: answers (what joining two costs the layers that read "
            "them, by moments), or ssim (1 - structural similarity of responses to real inputs)"
        },
    )
    linkage: str = field(
        default="average",
        metadata={"help": f"{', '.join(LINKAGES)} (Ward on the rows of the similarity matrix)"},
    )
    centre: str = field(
        default=MEAN, metadata={"help": "the filter that a cluster shares: mean or medoid"}
    )
    count: str = field(
        default="",
        metadata={
            "help": "filters that stay in every group, atoms or entries of every layer; "
            "N+M+... one by one in order of execution; empty lets the plan choose"
        },
    )
    threshold: float = field(
        default=0.0, metadata={"help": "filters farther apart than this never join"}
    )
    round_to: int = field(
        default=0,
        metadata={"help": "filters: counts on offer are multiples of this; 0 offers about a dozen"},
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", str(self.count))
        for option, value, known in (
            ("shared", self.shared, (FILTERS, KERNELS, ATOMS, EDGES)),
            ("source", self.source, (LEARNED, PREDEFINED, BOTH)),
            ("distance", self.distance, DISTANCES),
            ("linkage", self.linkage, LINKAGES),
            ("centre", self.centre, CENTRES),
        ):
            if value not in known:
                raise UsageError(f"dsl: {option}={value!r} is none of {', '.join(known)}")
        if self.count and not all(n.isdecimal() and int(n) for n in self.count.split("+")):
            raise UsageError(f"dsl: count={self.count!r} is neither a number nor N+M+...")
        for option, number in (("threshold", self.threshold), ("price", self.price)):
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise UsageError(f"dsl: {option}={number!r} is not a number")
            if not 0.0 <= number < float("inf"):
                raise UsageError(f"dsl: {option}={number!r} must be a number >= 0")
        if self.source != LEARNED and (self.shared != KERNELS or self.count):
            raise UsageError(
                f"dsl: source={self.source} goes with shared=kernels, and without count"
            )
        if self.shared == EDGES and self.count:
            raise UsageError("dsl: count goes with shared=filters, kernels or atoms")
        if self.price and self.source != PREDEFINED:
            raise UsageError("dsl: price goes with source=predefined")
        if self.threshold and (self.count or self.shared != FILTERS):
            raise UsageError("dsl: threshold goes with shared=filters, and without count")
        if type(self.round_to) is not int or self.round_to < 0:
            raise UsageError(f"dsl: round_to={self.round_to!r} must be a whole number >= 0")
