"""Options and timings as plain values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from onnxcompress.latency.table import LayerTiming
from onnxcompress.plan.contract import Candidate, Pass, Refusal, candidate_from_dict
from onnxcompress.plan.gate import Key
from onnxcompress.plan.options import Options


def stored_options(options: Options, timings: Mapping[Key, LayerTiming]) -> dict[str, Any]:
    """What was offered and timed, for the journal."""
    return {
        "sites": [[_stored(c) for c in offers] for offers in options.sites],
        "refusals": [[r.pass_name, r.node, r.reason, r.see] for r in options.refusals],
        "timings": [
            [list(key), list(timing.original_ms), list(timing.candidate_ms)]
            for key, timing in timings.items()
        ],
    }


def read_options(
    values: Mapping[str, Any], passes: Mapping[str, Pass[Any]]
) -> tuple[Options, dict[Key, LayerTiming]]:
    """What was offered and timed, from the journal.

    Raises:
        UsageError: an entry does not fit its pass.
    """
    options = Options(
        tuple(tuple(_read(c, passes) for c in offers) for offers in values["sites"]),
        tuple(Refusal(*entry) for entry in values["refusals"]),
    )
    timings: dict[Key, LayerTiming] = {
        (key[0], key[1], key[2]): LayerTiming(tuple(original), tuple(candidate))
        for key, original, candidate in values["timings"]
    }
    return options, timings


def _stored(candidate: Candidate[Any]) -> dict[str, Any]:
    return candidate.to_dict() | {
        "recommended": candidate.recommended,
        "removes": list(candidate.removes),
        "shifts": list(candidate.shifts),
        "narrows": list(candidate.narrows),
        "follows": candidate.follows,
        "stored": candidate.stored,
    }


def _read(values: Mapping[str, Any], passes: Mapping[str, Pass[Any]]) -> Candidate[Any]:
    return replace(
        candidate_from_dict(dict(values), passes[values["pass"]]),
        recommended=bool(values["recommended"]),
        removes=tuple(values["removes"]),
        shifts=tuple(values["shifts"]),
        narrows=tuple(values["narrows"]),
        follows=bool(values["follows"]),
        stored=bool(values["stored"]),
    )
