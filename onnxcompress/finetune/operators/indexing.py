"""Operators that pick or place elements by indices."""

from __future__ import annotations

import torch

from onnxcompress.finetune.operators.call import Call, Operator, UnsupportedError


def gather(call: Call) -> torch.Tensor:
    """Gather along an axis."""
    axis = call.axis(0)
    indices = _from_the_front(call.input(1), call.x.shape[axis])
    taken = call.x.index_select(axis, indices.reshape(-1).to(call.x.device))
    return taken.reshape([*call.x.shape[:axis], *indices.shape, *call.x.shape[axis + 1 :]])


def gather_elements(call: Call) -> torch.Tensor:
    """GatherElements."""
    axis = call.axis(0)
    return torch.gather(call.x, axis, _from_the_front(call.input(1), call.x.shape[axis]))


def gather_nd(call: Call) -> torch.Tensor:
    """GatherND without batch axes."""
    if call.get("batch_dims", 0):
        raise UnsupportedError("batch axes are not known")
    return call.x[tuple(call.input(1).long().unbind(-1))]


def scatter_elements(call: Call) -> torch.Tensor:
    """ScatterElements, overwriting or adding."""
    axis = call.axis(0)
    at = _from_the_front(call.input(1), call.x.shape[axis])
    place = call.x.scatter_add if _adds(call) else call.x.scatter
    return place(axis, at, call.input(2))


def scatter_nd(call: Call) -> torch.Tensor:
    """ScatterND, overwriting or adding."""
    at = tuple(call.input(1).long().unbind(-1))
    return call.x.index_put(at, call.input(2), accumulate=_adds(call))


def _adds(call: Call) -> bool:
    """Whether what is placed is added to what is there."""
    reduction = call.get("reduction", "none")
    if reduction not in {"none", "add"}:
        raise UnsupportedError(f"reduction {reduction} is not known")
    return bool(reduction == "add")


def _from_the_front(indices: torch.Tensor, extent: int) -> torch.Tensor:
    """Indices of which negative ones count from the end."""
    whole = indices.long()
    return torch.where(whole < 0, whole + extent, whole)


def one_hot(call: Call) -> torch.Tensor:
    """OneHot."""
    count = int(call.input(1).reshape(-1)[0].item())
    off, on = call.input(2).unbind()
    axis = call.get("axis", -1)
    axis = axis + call.x.dim() + 1 if axis < 0 else axis
    at = _from_the_front(call.x, count).unsqueeze(axis)
    places = torch.arange(count, device=at.device)
    places = places.reshape([-1 if a == axis else 1 for a in range(at.dim())])
    return torch.where(at == places, on, off)


def non_zero(call: Call) -> torch.Tensor:
    """NonZero."""
    return call.x.nonzero().T


OPERATORS: dict[str, Operator] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "NonZero": non_zero,
    "OneHot": one_hot,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
}
