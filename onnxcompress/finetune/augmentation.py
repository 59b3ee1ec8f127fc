"""Variations of images that need no labels: the teacher answers for whatever comes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch.nn import functional

from onnxcompress.errors import UsageError
from onnxcompress.finetune.network import Values

KINDS = ("flip", "crop", "zoom", "mixup")
_MARGIN = 8
"""Images are shifted by up to an eighth of their extent,"""
_ZOOM, _STRETCH = 1.4, 1.15
"""made larger or smaller by up to the one, wider or narrower by up to the other."""


def parse_augmentation(text: str) -> tuple[str, ...] | None:
    """`auto` (None), `none`, or some of flip, crop, zoom and mixup.

    Raises:
        UsageError: it is nothing of the kind.
    """
    if text == "auto":
        return None
    names = tuple(name for name in text.split(",") if name and name != "none")
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise UsageError(f"--augment '{unknown[0]}' is none of auto, none, {', '.join(KINDS)}")
    return names


def fitting(shapes: Iterable[tuple[int, ...]]) -> tuple[str, ...]:
    """What is done to inputs unless something else is asked for: flips of colour images, crops.

    Args:
        shapes: of the inputs, [N, C, H, W] for images.
    """
    found = [shape for shape in shapes if len(shape) == 4 and shape[1] in {1, 3}]
    if len(found) != 1 or min(found[0][2:]) < _MARGIN:
        return ()
    return ("flip", "crop") if found[0][1] == 3 else ("crop",)


def drawn(generator: torch.Generator) -> torch.Generator:
    """One of its own for a batch that is varied in another thread."""
    return torch.Generator().manual_seed(int(torch.randint(1 << 62, (), generator=generator)))


def varied(
    feeds: Mapping[str, torch.Tensor], kinds: Iterable[str], generator: torch.Generator
) -> Values:
    """A batch with every image flipped, shifted, zoomed and mixed at random.

    Args:
        feeds: by input name; images are [N, C, H, W], and all varied alike.
        kinds: some of `KINDS`.
        generator: of random numbers.
    """
    return {
        name: _varied(x, set(kinds), generator) if x.dim() == 4 and x.is_floating_point() else x
        for name, x in feeds.items()
    }


def _varied(x: torch.Tensor, kinds: set[str], generator: torch.Generator) -> torch.Tensor:
    count, _, height, width = x.shape
    if "flip" in kinds:
        flipped = torch.rand(count, generator=generator) < 0.5
        x = torch.where(flipped.reshape(-1, 1, 1, 1).to(x.device), x.flip(3), x)
    if "crop" in kinds:
        most = (height // _MARGIN, width // _MARGIN)
        padded = functional.pad(x, [most[1], most[1], most[0], most[0]], mode="reflect")
        tops = torch.randint(2 * most[0] + 1, (count,), generator=generator).tolist()
        lefts = torch.randint(2 * most[1] + 1, (count,), generator=generator).tolist()
        x = torch.stack(
            [
                padded[at, :, top : top + height, left : left + width]
                for at, (top, left) in enumerate(zip(tops, lefts, strict=True))
            ]
        )
    if "zoom" in kinds:
        x = _zoomed(x, generator)
    if "mixup" in kinds:
        share = torch.rand(count, generator=generator).reshape(-1, 1, 1, 1).to(x.device)
        others = torch.randperm(count, generator=generator).to(x.device)
        x = share * x + (1 - share) * x[others]
    return x


def _zoomed(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images larger or smaller about their middle, mirrored beyond their borders."""
    zoom, stretch = (
        limit ** (2 * torch.rand(len(x), generator=generator) - 1) for limit in (_ZOOM, _STRETCH)
    )
    across, down = (
        factor.to(x)[:, None] * (torch.arange(0.5, size).to(x) * 2 / size - 1)
        for factor, size in ((zoom * stretch, x.shape[3]), (zoom / stretch, x.shape[2]))
    )
    shape = (len(x), *x.shape[2:])
    grid = torch.stack([across[:, None].expand(shape), down[:, :, None].expand(shape)], -1)
    return functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
