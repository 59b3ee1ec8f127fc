"""Tucker-2: a k x k convolution becomes 1x1, core, 1x1 (Kim et al. 2016, arXiv 1511.06530).

W [T, S, *k] is approximated by sum_{a,b} U_out[:, a] C[a, b, *k] U_in[:, b]. The first 1x1
convolution maps S channels to R_in and has no bias, because the zero padding of the core must see
zeros; the core keeps strides, pads, dilations (or auto_pad: 1x1 leaves sizes as they are); the
last 1x1 carries the bias. A factor whose rank is full is multiplied into the core (Tucker-1)
unless `rank=full` asks for the whole triple. With groups every group is decomposed by itself with
equal ranks and all three convolutions stay grouped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxcompress.analyse.facts import Facts, Need, Unsupported
from onnxcompress.errors import ModelError, UsageError
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.spec import ConvSpec, conv_spec
from onnxcompress.numerics.energy import lost_energy_tucker2
from onnxcompress.numerics.ranks import RankPolicy, parse_rank_policy
from onnxcompress.numerics.tucker import Tucker2 as Factors
from onnxcompress.numerics.tucker import tucker2
from onnxcompress.plan.contract import Candidate, NoCandidate, Pass, Refusal, Site
from onnxcompress_passes.eligibility import quantised_layers, reason_to_leave
from onnxcompress_passes.frontier import Rung, ladder

Array = NDArray[np.float64]

AUTO = "auto"


@dataclass(frozen=True)
class Tucker2Ranks:
    """Ranks per group; `triple` keeps a factor of full rank instead of absorbing it."""

    rank_out: int
    rank_in: int
    triple: bool = False


@dataclass(frozen=True)
class Tucker2(Pass[Tucker2Ranks]):
    """Replace k x k convolutions by Tucker-2 triples."""

    rank: str = field(
        default=AUTO,
        metadata={
            "help": "auto (a ladder of ranks to plan with; EVBMF decides when there is nothing to "
            "plan by), evbmf, weakened:K, energy:P, ratio:P, R, ROUTxRIN, or full"
        },
    )
    round_to: int = field(
        default=8, metadata={"help": "rank=auto offers multiples of this many channels"}
    )

    name: ClassVar[str] = "tucker2"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SHAPES})
    setting_type: ClassVar[type] = Tucker2Ranks

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", str(self.rank))
        if self.rank != AUTO:
            parse_rank_policy(self.rank)

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        """Every convolution with a spatial kernel that is not depthwise."""
        for conv in facts.convs():
            reason = conv.reason if isinstance(conv, Unsupported) else _unfit(conv, facts)
            if reason:
                yield Refusal(self.name, conv.node, reason)
            else:
                yield Site(self.name, conv.node)
        for node, reason in quantised_layers(facts, frozenset({"QLinearConv", "ConvInteger"})):
            yield Refusal(self.name, node, reason)
        for node in facts.model.graph.node:
            if node.op_type == "ConvTranspose":
                reason = "transposed convolution: Tucker-2 covers Conv only"
                yield Refusal(self.name, node.name, reason)

    def candidates(self, site: Site, facts: Facts) -> Sequence[Candidate[Tucker2Ranks]]:
        """Lossless triple first, then ranks along the front of MACs against lost energy."""
        conv = conv_spec(facts.view.nodes[site.node], facts.view)
        blocks = _blocks(facts.view.array64(conv.weight), conv.group)
        lost = lost_energy_tucker2(blocks)
        if self.rank != AUTO:
            ranks = self._demanded(parse_rank_policy(self.rank), blocks)
            return [self._candidate(site, conv, facts, ranks, lost, recommended=True)]
        rungs = [
            Rung(ranks, self._cost(conv, facts, ranks), _damage(lost, ranks))
            for ranks in self._grid(conv)
        ]
        full = Tucker2Ranks(*_full_ranks(lost), triple=True)
        before = facts.cost(conv.node)
        kept = ladder(rungs, before)
        recommended = _recommended(blocks, lost, kept)
        found = [Candidate(site, full, (conv.node,), before, self._cost(conv, facts, full), 0.0)]
        found.extend(
            Candidate(
                site,
                rung.setting,
                (conv.node,),
                before,
                rung.after,
                rung.damage,
                recommended=rung is recommended,
            )
            for rung in kept
        )
        return found

    def rewrite(self, candidate: Candidate[Tucker2Ranks], edit: Editor) -> None:
        """Put the two or three convolutions where the one stood."""
        node = edit.node(candidate.site.node)
        ranks = candidate.setting
        weight = np.asarray(node.inputs[1].values)
        group = int(node.attrs.get("group", 1))
        parts = edit.memo.recall(
            (self.name, node.name, ranks), lambda: _decompose(weight, group, ranks), _octets
        )
        rows, columns = weight.shape[0] // group, weight.shape[1]
        keep_in = ranks.triple or ranks.rank_in < columns
        keep_out = ranks.triple or ranks.rank_out < rows
        spatial = weight.ndim - 2
        if keep_in and keep_out:
            cores = [part.core for part in parts]
        elif keep_in:
            cores = [part.absorb_out() for part in parts]
        else:
            cores = [part.absorb_in() for part in parts]
        ones = (1,) * spatial
        stack: list[tuple[str, Array]] = []
        if keep_in:
            factors = [part.factor_in.T for part in parts]
            stack.append(("in", np.concatenate(factors).reshape(-1, columns, *ones)))
        stack.append(("core", np.concatenate(cores)))
        if keep_out:
            factors = [part.factor_out for part in parts]
            stack.append(("out", np.concatenate(factors).reshape(-1, ranks.rank_out, *ones)))
        geometry = {k: node.attrs[k] for k in _GEOMETRY if k in node.attrs}
        bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        name, tensor, new = node.name, node.inputs[0], []
        for index, (role, values) in enumerate(stack):
            last = index == len(stack) - 1
            constant = edit.constant(f"{name}_tucker_{role}", values.astype(weight.dtype))
            attrs = {"kernel_shape": list(values.shape[2:]), "group": group}
            if role == "core":
                attrs |= geometry
            inputs = [tensor, constant] + ([bias] if last and bias is not None else [])
            outputs = [] if last else [edit.variable(f"{name}_tucker_{role}_out", node.inputs[0])]
            new.append(
                gs.Node("Conv", f"{name}_tucker_{role}", attrs, inputs=inputs, outputs=outputs)
            )
            tensor = outputs[0] if outputs else tensor
        edit.replace(node, new)

    def _demanded(self, policy: RankPolicy, blocks: Sequence[Array]) -> Tucker2Ranks:
        rows, columns = blocks[0].shape[:2]
        if str(policy) == "full":
            return Tucker2Ranks(rows, columns, triple=True)
        try:
            rank_out, rank_in = _shared_ranks(policy, blocks)
        except UsageError as error:
            raise NoCandidate(str(error)) from error
        if rank_out == 0 or rank_in == 0:
            raise NoCandidate(f"{policy} gives rank 0: no direction stands out from the noise")
        if rank_out >= rows and rank_in >= columns:
            raise NoCandidate(f"{policy} gives full rank ({rows}x{columns}): nothing to remove")
        return Tucker2Ranks(min(rank_out, rows), min(rank_in, columns))

    def _candidate(
        self,
        site: Site,
        conv: ConvSpec,
        facts: Facts,
        ranks: Tucker2Ranks,
        lost: Array,
        *,
        recommended: bool,
    ) -> Candidate[Tucker2Ranks]:
        return Candidate(
            site,
            ranks,
            (conv.node,),
            facts.cost(conv.node),
            self._cost(conv, facts, ranks),
            _damage(lost, ranks),
            recommended,
        )

    def _grid(self, conv: ConvSpec) -> Iterator[Tucker2Ranks]:
        rows, columns = conv.out_channels // conv.group, conv.in_channels // conv.group
        for rank_out in _multiples(rows, self.round_to):
            for rank_in in _multiples(columns, self.round_to):
                if (rank_out, rank_in) != (rows, columns):
                    yield Tucker2Ranks(rank_out, rank_in)

    def _cost(self, conv: ConvSpec, facts: Facts, ranks: Tucker2Ranks) -> Cost:
        """Counted cost of the triple; the first 1x1 runs at the input's resolution."""
        positions_in = prod(facts.shape(conv.input)) // conv.in_channels
        positions_out = prod(facts.shape(conv.output)) // conv.out_channels
        rows, columns = conv.out_channels // conv.group, conv.in_channels // conv.group
        first = conv.in_channels * ranks.rank_in
        core = conv.group * ranks.rank_out * ranks.rank_in * prod(conv.kernel)
        last = conv.out_channels * ranks.rank_out
        if not ranks.triple:
            first = first if ranks.rank_in < columns else 0
            last = last if ranks.rank_out < rows else 0
        params = first + core + last + (conv.out_channels if conv.bias else 0)
        return Cost(
            macs=first * positions_in + (core + last) * positions_out,
            params=params,
            weight_bytes=params * facts.view.array(conv.weight).dtype.itemsize,
        )


# Further sweeps change the error of a trained weight in the third digit at most.
_SWEEPS = 3
_GEOMETRY = ("strides", "pads", "dilations", "auto_pad")


def _unfit(conv: ConvSpec, facts: Facts) -> str:
    if conv.pointwise:
        return "1x1 kernel: pass svd covers it"
    if conv.depthwise:
        return "depthwise: each channel is convolved by itself, there is nothing to share"
    reason = reason_to_leave(facts, conv.node, conv.weight)
    if reason:
        return reason
    try:
        facts.shape(conv.input), facts.shape(conv.output)
    except ModelError as error:
        return str(error)
    return ""


def _decompose(weight: NDArray[np.generic], group: int, ranks: Tucker2Ranks) -> list[Factors]:
    """Higher-order orthogonal iteration of every group."""
    return [
        tucker2(block, ranks.rank_out, ranks.rank_in, iterations=_SWEEPS, tolerance=1e-6)
        for block in _blocks(weight.astype(np.float64), group)
    ]


def _octets(parts: Sequence[Factors]) -> int:
    return sum(p.core.nbytes + p.factor_out.nbytes + p.factor_in.nbytes for p in parts)


def _blocks(weight: Array, group: int) -> list[Array]:
    return list(weight.reshape(group, -1, *weight.shape[1:]))


def _full_ranks(lost: Array) -> tuple[int, int]:
    """Full ranks (out, in) of a table of lost energy."""
    return lost.shape[0] - 1, lost.shape[1] - 1


def _damage(lost: Array, ranks: Tucker2Ranks) -> float:
    if (ranks.rank_out, ranks.rank_in) == _full_ranks(lost):
        return 0.0
    return float(lost[ranks.rank_out, ranks.rank_in])


def _multiples(full: int, step: int) -> list[int]:
    return [*range(step, full, step), full]


def _shared_ranks(policy: RankPolicy, blocks: Sequence[Array]) -> tuple[int, int]:
    """Ranks (out, in) that serve every group: the largest that one of them needs."""
    found = [policy.tucker2_ranks(block) for block in blocks]
    return max(rank for rank, _ in found), max(rank for _, rank in found)


def _recommended(
    blocks: Sequence[Array], lost: Array, kept: Sequence[Rung[Tucker2Ranks]]
) -> Rung[Tucker2Ranks] | None:
    """The cheapest rung that keeps at least the energy that EVBMF calls signal."""
    rank_out, rank_in = _shared_ranks(parse_rank_policy("evbmf"), blocks)
    if rank_out == 0 or rank_in == 0:
        return None
    allowed = float(lost[rank_out, rank_in]) * (1.0 + 1e-9)
    fitting = [rung for rung in kept if rung.damage <= allowed]
    return fitting[-1] if fitting else None
