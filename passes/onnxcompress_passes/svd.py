"""SVD: a 1x1 convolution or dense layer becomes two of lower rank.

W [T, S] is approximated by L R with L [T, r] and R [r, S]. A strided 1x1 convolution keeps its
stride in the first factor, so that the second works on fewer positions. Biases, alpha and beta
stay with the second factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxcompress.analyse.facts import Facts, Unsupported
from onnxcompress.analyse.linear import linear_layer
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.spec import ConvSpec, DenseSpec, conv_spec, dense_spec
from onnxcompress.numerics.data_low_rank import answers, data_svd, variances
from onnxcompress.numerics.energy import lost_energy_svd
from onnxcompress.numerics.low_rank import LowRank, truncated_svd
from onnxcompress.numerics.ranks import RankPolicy
from onnxcompress.plan.contract import Candidate, Refusal, Site
from onnxcompress_passes.eligibility import QUANTISED, quantised_layers, reason_to_leave
from onnxcompress_passes.low_rank_pass import DATA, WEIGHTS, LowRankPass, Ranks
from onnxcompress_passes.narrowed import left_of, whole_weight
from onnxcompress_passes.recentred import metric_in, recentred_bias

Array = NDArray[np.float64]


_SPATIAL = "k x k kernel: pass tucker2 covers it"


@dataclass(frozen=True)
class SvdRank:
    """Rank per group, and what an error counts: "weights", or "data" (the layer's answers)."""

    rank: int
    metric: str = WEIGHTS


@dataclass(frozen=True)
class Svd(LowRankPass[ConvSpec | DenseSpec, SvdRank]):
    """Replace 1x1 convolutions, Gemm and MatMul by two factors of lower rank."""

    name: ClassVar[str] = "svd"
    setting_type: ClassVar[type] = SvdRank

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        """Every 1x1 convolution that is not depthwise, Gemm, and MatMul by a constant."""
        for layer in (*facts.convs(), *facts.denses()):
            reason = layer.reason if isinstance(layer, Unsupported) else _unfit(layer, facts)
            if reason:
                see = "tucker2" if reason == _SPATIAL else ""
                yield Refusal(self.name, layer.node, reason, see)
            else:
                yield Site(self.name, layer.node)
        for node, reason in quantised_layers(facts, QUANTISED - {"QLinearConv", "ConvInteger"}):
            yield Refusal(self.name, node, reason)

    def rewrite(self, candidate: Candidate[SvdRank], edit: Editor) -> None:
        """Put the two factors where the layer stood."""
        node = edit.node(candidate.site.node)
        if node.op == "Conv":
            _rewrite_conv(node, candidate.setting, edit)
        else:
            _rewrite_dense(node, candidate.setting, edit)

    def _layer(self, node: str, facts: Facts) -> tuple[ConvSpec | DenseSpec, list[Array]]:
        proto = facts.view.nodes[node]
        if proto.op_type != "Conv":
            dense = dense_spec(proto, facts.view)
            stored = facts.view.array64(dense.weight)
            return dense, [stored if dense.transposed else stored.T]
        conv = conv_spec(proto, facts.view)
        weight = facts.view.array64(conv.weight)
        return conv, list(weight.reshape(conv.group, -1, weight.shape[1]))

    def _full(self, blocks: Sequence[Array]) -> Ranks:
        return (min(blocks[0].shape),)

    def _ranks(self, policy: RankPolicy, blocks: Sequence[Array]) -> Ranks:
        return (max(policy.svd_rank(block) for block in blocks),)

    def _lost_energy(self, blocks: Sequence[Array], covariances: Array | None) -> Array:
        if covariances is None:
            return lost_energy_svd(blocks)
        pairs = list(zip(blocks, covariances, strict=True))
        lost = np.stack([answers(weight, r).lost[: min(weight.shape) + 1] for weight, r in pairs])
        lost[:, -1] = 0.0
        return np.asarray(variances(pairs) @ lost)

    def _setting(self, ranks: Ranks, metric: str, *, lossless: bool) -> SvdRank:
        return SvdRank(ranks[0], metric)

    def _cost(self, layer: ConvSpec | DenseSpec, facts: Facts, setting: SvdRank) -> Cost:
        if isinstance(layer, ConvSpec):
            features_in, features_out = layer.in_channels, layer.out_channels
        else:
            features_in, features_out = layer.in_features, layer.out_features
        positions = prod(facts.shape(layer.output)) // features_out
        # Ranks are per group: group * rank * (in + out) / group, so the group cancels out.
        weights = setting.rank * (features_in + features_out)
        constant_bias = layer.bias is not None and facts.view.is_constant(layer.bias)
        bias = facts.view.array(layer.bias).size if layer.bias and constant_bias else 0
        if layer.bias is None and setting.metric == DATA:
            linear = linear_layer(facts.view.nodes[layer.node], facts.view)
            bias = features_out if linear.can_hold_bias else 0
        itemsize = facts.view.array(layer.weight).dtype.itemsize
        return Cost(weights * positions, weights + bias, (weights + bias) * itemsize)


def _factors(
    node: gs.Node, matrices: Sequence[Array], setting: SvdRank, edit: Editor
) -> list[LowRank]:
    """Two factors of what is left of the matrix [h, d] of every group.

    Args:
        node: the layer.
        matrices: of the whole layer.
        setting: rank and metric.
        edit: the editor that the node belongs to.
    """
    if setting.metric != DATA:
        parts = [truncated_svd(matrix, setting.rank) for matrix in matrices]
    else:
        covariances = metric_in(edit, node.name)
        pairs = zip(matrices, covariances, strict=True)
        parts = [data_svd(m, r, setting.rank) for m, r in pairs]
    left = left_of(edit, node)
    if left is None:
        return parts
    return [replace(p, left=p.left[left.rows], right=p.right[:, left.columns]) for p in parts]


def _pays(parts: Sequence[LowRank]) -> bool:
    """Whether factors are smaller than their product; few channels may be left."""
    spent = sum(int(part.left.size + part.right.size) for part in parts)
    return spent < sum(len(part.left) * int(part.right.shape[1]) for part in parts)


def _rewrite_conv(node: gs.Node, setting: SvdRank, edit: Editor) -> None:
    weight = whole_weight(edit, node)
    group, rank = int(node.attrs.get("group", 1)), setting.rank
    ones = (1,) * (weight.ndim - 2)
    matrices = weight.astype(np.float64).reshape(group, -1, weight.shape[1])
    parts = _factors(node, list(matrices), setting, edit)
    bias = [*node.inputs[2:]]
    if setting.metric == DATA:
        recentred = recentred_bias(edit, node, np.stack([p.reconstruct() for p in parts]))
        bias = [] if recentred is None else [recentred]
    geometry = {k: node.attrs[k] for k in ("strides", "pads", "auto_pad") if k in node.attrs}
    attrs = {"kernel_shape": list(ones), "group": group}
    if left_of(edit, node) is not None and not _pays(parts):
        product = np.concatenate([part.reconstruct() for part in parts])
        values = product.reshape(*product.shape, *ones).astype(weight.dtype)
        inputs = [node.inputs[0], edit.constant(f"{node.name}_svd", values), *bias]
        edit.replace(node, [gs.Node("Conv", f"{node.name}_svd", attrs | geometry, inputs=inputs)])
        return
    columns = parts[0].right.shape[1]
    right = np.concatenate([part.right for part in parts]).reshape(-1, columns, *ones)
    left = np.concatenate([part.left for part in parts]).reshape(-1, rank, *ones)
    middle = edit.variable(f"{node.name}_svd_in_out", node.inputs[0])
    first = gs.Node(
        "Conv",
        f"{node.name}_svd_in",
        attrs | geometry,
        inputs=[node.inputs[0], edit.constant(f"{node.name}_svd_in", right.astype(weight.dtype))],
        outputs=[middle],
    )
    second = gs.Node(
        "Conv",
        f"{node.name}_svd_out",
        dict(attrs),
        inputs=[
            middle,
            edit.constant(f"{node.name}_svd_out", left.astype(weight.dtype)),
            *bias,
        ],
    )
    edit.replace(node, [first, second])


def _rewrite_dense(node: gs.Node, setting: SvdRank, edit: Editor) -> None:
    stored = whole_weight(edit, node)
    transposed = bool(node.attrs.get("transB", 0))
    outward = stored.astype(np.float64) if transposed else stored.astype(np.float64).T
    (part,) = _factors(node, [outward], setting, edit)
    bias = [*node.inputs[2:]]
    if setting.metric == DATA:
        recentred = recentred_bias(edit, node, part.reconstruct()[np.newaxis])
        bias = [] if recentred is None else [recentred]
    if left_of(edit, node) is not None and not _pays([part]):
        product = part.reconstruct() if transposed else part.reconstruct().T
        constant = edit.constant(f"{node.name}_svd", product.astype(stored.dtype))
        inputs = [node.inputs[0], constant, *bias]
        edit.replace(node, [gs.Node(node.op, f"{node.name}_svd", dict(node.attrs), inputs=inputs)])
        return
    # y = x W' with W = (left) (right): x (right)' (left)'.
    second_weight = part.left if transposed else part.left.T
    middle = edit.variable(f"{node.name}_svd_in_out", node.inputs[0])
    first = gs.Node(
        "MatMul",
        f"{node.name}_svd_in",
        inputs=[
            node.inputs[0],
            edit.constant(f"{node.name}_svd_in", part.right.T.astype(stored.dtype)),
        ],
        outputs=[middle],
    )
    second = gs.Node(
        node.op,
        f"{node.name}_svd_out",
        dict(node.attrs),
        inputs=[
            middle,
            edit.constant(f"{node.name}_svd_out", second_weight.astype(stored.dtype)),
            *bias,
        ],
    )
    edit.replace(node, [first, second])


def _unfit(layer: ConvSpec | DenseSpec, facts: Facts) -> str:
    if isinstance(layer, ConvSpec):
        if not layer.pointwise:
            return _SPATIAL
        if layer.depthwise:
            return "depthwise: each channel is scaled by itself, there is nothing to share"
    return reason_to_leave(facts, layer)
