"""Preprocessing from text: a YAML file, or key=value pairs with bracketed lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from onnxcompress.calibrate.preprocess import Preprocess, preprocess_error


def parse_preprocess(text: str | None) -> Preprocess | None:
    """Read the value of `--preprocess`.

    Args:
        text: `FILE.yaml` (a mapping), or `key=value,...` where a value may be a bracketed list
            such as `mean=[.485,.456,.406]`, and a number may be a fraction such as `1/255`.

    Returns:
        The preprocessing, or None when nothing was given.

    Raises:
        UsageError: Unreadable file, unknown or repeated key, or bad value.
    """
    if text is None:
        return None
    from_file = Path(text).suffix.lower() in (".yaml", ".yml")
    entries = _file_entries(text) if from_file else _pair_entries(text)
    settings: dict[str, Any] = {}
    for key, value in entries.items():
        if key not in _READERS:
            raise preprocess_error(f"unknown key {key!r}")
        try:
            settings[str(key)] = _READERS[key](value)
        except (ValueError, OverflowError, ZeroDivisionError) as error:
            raise preprocess_error(f"bad value for {key!r}: {value!r}") from error
    return Preprocess(**settings)


def _file_entries(text: str) -> dict[object, object]:
    try:
        entries = yaml.safe_load(Path(text).read_text(encoding="utf-8"))
    except OSError as error:
        raise preprocess_error(f"cannot read {text} ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise preprocess_error(f"{text} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(entries, dict):
        raise preprocess_error(f"{text} must hold a mapping of keys to values")
    return entries


def _pair_entries(text: str) -> dict[object, object]:
    entries: dict[object, object] = {}
    for item in _split(text):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise preprocess_error(f"expected key=value or FILE.yaml, got {item!r}")
        if key in entries:
            raise preprocess_error(f"key {key!r} is given twice")
        try:
            entries[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise preprocess_error(f"bad value for {key!r}: {value!r}") from error
    return entries


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    items, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    return items


def _word(value: object) -> str:
    return str(value).lower()


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("not an integer")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("not a number")
    above, slash, below = str(value).partition("/")
    return float(above) / float(below) if slash else float(above)


def _numbers(value: object) -> tuple[float, ...]:
    return tuple(map(_number, value)) if isinstance(value, list) else (_number(value),)


def _pair(value: object) -> tuple[int, int]:
    if not isinstance(value, list):
        return _integer(value), _integer(value)
    height, width = map(_integer, value)
    return height, width


def _side_or_pair(value: object) -> int | tuple[int, int]:
    return _pair(value) if isinstance(value, list) else _integer(value)


_READERS: dict[object, Callable[[object], object]] = {
    "layout": _word,
    "color": _word,
    "resize": _side_or_pair,
    "crop": _pair,
    "scale": _number,
    "mean": _numbers,
    "std": _numbers,
    "label_offset": _integer,
}
