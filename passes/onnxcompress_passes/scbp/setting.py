"""What stays of a superblock, as plan files say it; and ratios, as options say them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxcompress.errors import UsageError


@dataclass(frozen=True)
class Widths:
    """What stays of the groups of a superblock.

    Attributes:
        superblock: its name.
        ratio: the width modifier (the paper's c-ratio).
        kept: name of every group, and numbers of its channels that stay, ascending.
    """

    superblock: str
    ratio: float
    kept: tuple[tuple[str, tuple[int, ...]], ...]


def read_widths(values: Any) -> Widths:
    """A setting from the plan file: `{"superblock": "1", "ratio": 0.5, "kept": [["a", [0]]]}`.

    Raises:
        UsageError: the values do not fit.
    """
    wrong = UsageError(f"setting {str(values)[:200]} does not fit pass 'scbp'")
    if not isinstance(values, dict) or set(values) != {"superblock", "ratio", "kept"}:
        raise wrong
    name, ratio, kept = values["superblock"], values["ratio"], values["kept"]
    if not isinstance(name, str) or type(ratio) not in {int, float} or not 0 < ratio <= 1:
        raise wrong
    if not isinstance(kept, (list, tuple)) or not kept or not all(map(_is_group, kept)):
        raise wrong
    groups = tuple((name, tuple(sorted(set(channels)))) for name, channels in kept)
    if len({name for name, _ in groups}) < len(groups):
        raise wrong
    return Widths(name, float(ratio), groups)


def _is_group(entry: Any) -> bool:
    if not isinstance(entry, (list, tuple)) or len(entry) != 2 or not isinstance(entry[0], str):
        return False
    channels = entry[1]
    listed = isinstance(channels, (list, tuple)) and bool(channels)
    return listed and all(type(channel) is int for channel in channels)


def parse_ratios(values: Any, option: str) -> tuple[float, ...]:
    """Ratios from `0.75+0.5+0.25`, or from a single number.

    Raises:
        UsageError: one of them is no number above 0, up to 1.
    """
    texts: Sequence[Any] = values.split("+") if isinstance(values, str) else [values]
    try:
        if isinstance(values, bool):
            raise TypeError
        found = tuple(float(text) for text in texts)
    except (TypeError, ValueError) as error:
        raise UsageError(f"scbp: {option}={values!r} is not of the form 0.75+0.5+0.25") from error
    if not all(0.0 < ratio <= 1.0 for ratio in found):
        raise UsageError(f"scbp: {option}={values!r}: ratios lie above 0, and are 1 at most")
    return found
