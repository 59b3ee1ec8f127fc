"""How much memory a training step takes, and how much there is."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch

_SINGLE = 4
"""Bytes of a number."""
_SHARE = 0.5
"""Of what is free, how much a step's tensors may take: gradients and workspaces come on top."""
_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup/memory.max")
_GROUP_USED = Path("/sys/fs/cgroup/memory.current")


def step_bytes(shapes: Mapping[str, tuple[int, ...]], samples: int) -> int:
    """What a step keeps for its way back: everything that is computed.

    Args:
        shapes: of all tensors, for one sample.
        samples: of a step that are computed at once.
    """
    return _SINGLE * samples * sum(prod(shape) for shape in shapes.values())


def is_short(needed: int, device: torch.device) -> bool:
    """Whether a step would take most of the memory that is free; unknown counts as enough."""
    free = free_bytes(device)
    return free is not None and needed > _SHARE * free


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_available(), _left_to_group()]
    known = [one for one in found if one is not None]
    return min(known) if known else None


def _available() -> int | None:
    """What Linux could hand out without swapping."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    words = fields.get("MemAvailable", "").split()
    return 1024 * int(words[0]) if words and words[0].isdigit() else None


def _left_to_group() -> int | None:
    """What a container may still take."""
    try:
        most, used = (path.read_text().strip() for path in (_GROUP, _GROUP_USED))
    except OSError:
        return None
    return int(most) - int(used) if most.isdigit() and used.isdigit() else None
