"""The plan: what will be rewritten, as data that can be read, saved, reviewed and replayed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcompress.errors import UsageError
from onnxcompress.plan.contract import Candidate, Pass, Refusal, candidate_from_dict
from onnxcompress.plan.registry import make_pass, options
from onnxcompress.plan.search import Prediction
from onnxcompress.plan.targets import PRECISIONS, check_targets

VERSION = 1
Rounds = tuple[tuple[Candidate[Any], ...], ...]
"""Exact rewrites, round after round: those of a round are carried out on what the last one left."""


@dataclass(frozen=True)
class Plan:
    """The chosen candidates for one model, and why every other layer stays.

    Attributes:
        model_digest: digest of the canonical model that the plan was made for.
        passes: name and options of every pass that took part, in order.
        chosen: what to rewrite.
        first: exact rewrites that come before that.
        refusals: layers left alone, with reasons.
        targets: what was asked for.
        gate: whether rewrites were timed and slower ones dropped.
        notes: how the plan was found, in words.
        predictions: choices that were measured on the way; not part of the plan file.
        then: the precision that the result is converted to.
        stage: of a job in stages, from 1; a later one begins with what the others left.
    """

    model_digest: str
    passes: tuple[tuple[str, Mapping[str, Any]], ...]
    chosen: tuple[Candidate[Any], ...]
    refusals: tuple[Refusal, ...]
    targets: Mapping[str, float]
    gate: bool
    notes: tuple[str, ...] = ()
    first: Rounds = ()
    predictions: tuple[Prediction, ...] = ()
    then: str | None = None
    stage: int = 1

    @property
    def empty(self) -> bool:
        """Whether nothing would be rewritten."""
        return not self.chosen and not self.first and self.then is None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in a fixed order."""
        return {
            "version": VERSION,
            "model_digest": self.model_digest,
            "passes": [{"name": name, "options": dict(values)} for name, values in self.passes],
            "targets": dict(self.targets),
            "gate": self.gate,
            "then": self.then,
            "stage": self.stage,
            "first": [[candidate.to_dict() for candidate in one] for one in self.first],
            "chosen": [candidate.to_dict() for candidate in self.chosen],
            "refusals": [
                {"pass": r.pass_name, "node": r.node, "reason": r.reason} for r in self.refusals
            ],
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """The plan file."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def described(passes: Sequence[Pass[Any]]) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Name and options of each pass, for the plan file."""
    return tuple(
        (p.name, {option.name: getattr(p, option.name) for option in options(type(p))})
        for p in passes
    )


def read_plan(path: Path) -> tuple[Plan, list[Pass[Any]]]:
    """Read a plan file and the passes it needs.

    Raises:
        UsageError: the file cannot be read, is not a plan, or names an unknown pass.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"plan '{path}' cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("version") != VERSION:
        raise UsageError(f"'{path}' is not a plan of version {VERSION}")
    if values.get("stage", 1) != 1:
        raise UsageError(
            f"plan '{path}' is of stage {values['stage']} of a job: it begins with what the stages "
            "before left, not with the model"
        )
    try:
        passes = [make_pass(entry["name"], **entry["options"]) for entry in values["passes"]]
        owners = {owner.name: owner for owner in passes}
        chosen = tuple(candidate_from_dict(c, owners[c["pass"]]) for c in values["chosen"])
        first = tuple(
            tuple(candidate_from_dict(c, owners[c["pass"]]) for c in one)
            for one in values.get("first", [])
        )
        together = [c for c in chosen if owners[c.site.pass_name].works_together]
        # Candidates that are carried out together may share nodes, but not sites; others may be
        # carried out on what these leave of a node.
        sites = [c.site.node for c in together]
        touched = [name for c in chosen if c not in together for name in c.touches]
        if len(set(sites)) < len(sites) or len(set(touched)) < len(touched):
            raise UsageError(f"plan '{path}' rewrites a node twice")
        plan = Plan(
            model_digest=values["model_digest"],
            passes=described(passes),
            chosen=chosen,
            refusals=tuple(
                Refusal(r["pass"], r["node"], r["reason"]) for r in values.get("refusals", [])
            ),
            targets=check_targets(dict(values.get("targets", {}))),
            gate=bool(values.get("gate", True)),
            notes=tuple(values.get("notes", [])),
            first=first,
            then=values.get("then"),
        )
        if plan.then not in (None, *PRECISIONS):
            raise UsageError(f"plan '{path}' converts to '{plan.then}', which is not known here")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"plan '{path}' is malformed: {error!r}") from error
    return plan, passes
