"""All that the passes offer for one model: candidates per node, and refusals with their reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import OnnxCompressError, PassError
from onnxcompress.plan.contract import Candidate, NoCandidate, Pass, Refusal


@dataclass(frozen=True)
class Options:
    """What could be done: for each site its candidates (loosest first), and what was refused."""

    sites: tuple[tuple[Candidate[Any], ...], ...]
    refusals: tuple[Refusal, ...]


def collect(facts: Facts, passes: Sequence[Pass[Any]]) -> Options:
    """Ask every pass where it applies and what it offers there.

    The first pass that offers something for a node has it; later ones are told so. Candidates of
    a pass that works on many nodes together may share nodes with others: the choice decides.

    Raises:
        PassError: a pass raised something that is not an error of ours.
    """
    sites: list[tuple[Candidate[Any], ...]] = []
    refusals: list[Refusal] = []
    owners: dict[str, str] = {}
    for owner in passes:
        view = facts.restricted(owner.needs)
        for found in _guarded(owner, "sites", lambda o=owner, v=view: list(o.sites(v))):
            if isinstance(found, Refusal):
                refusals.append(found)
                continue
            try:
                offers = _guarded(
                    owner, found.node, lambda o=owner, v=view, f=found: tuple(o.candidates(f, v))
                )
            except NoCandidate as finding:
                refusals.append(Refusal(owner.name, found.node, str(finding)))
                continue
            if not offers:
                raise PassError(
                    f"pass '{owner.name}' offers nothing for its site '{found.node}': it must "
                    "raise NoCandidate with the reason"
                )
            if not owner.works_together:
                taken = next((owners[n] for c in offers for n in c.touches if n in owners), None)
                if taken is not None:
                    refusals.append(Refusal(owner.name, found.node, f"pass {taken} has it already"))
                    continue
                owners.update({name: owner.name for offer in offers for name in offer.touches})
            sites.append(offers)
    present = {owner.name for owner in passes}
    return Options(tuple(sites), tuple(r for r in refusals if r.see not in present))


def with_savings(options: Options) -> Options:
    """Options without candidates that cost more than the layer (kept where they are asked for)."""
    sites, refusals = [], list(options.refusals)
    for offers in options.sites:
        worth = tuple(c for c in offers if c.recommended or _saves(c))
        if worth:
            sites.append(worth)
        else:
            refusals.append(nothing_to_save(offers))
    return Options(tuple(sites), tuple(refusals))


def _saves(candidate: Candidate[Any]) -> bool:
    saving = candidate.saving
    return (saving.weight_bytes if candidate.stored else saving.macs) > 0


def nothing_to_save(offers: tuple[Candidate[Any], ...]) -> Refusal:
    """The refusal of a site none of whose candidates is cheaper than the layer."""
    site = offers[0].site
    return Refusal(
        site.pass_name, site.node, "too small: nothing on offer saves more than it costs"
    )


def _guarded(owner: Pass[Any], where: str, call: Any) -> Any:
    """Call into a pass; whatever escapes becomes an error that names pass and place."""
    try:
        return call()
    except (OnnxCompressError, NoCandidate):
        raise
    except Exception as error:
        raise PassError(f"pass '{owner.name}' failed at '{where}': {error!r}") from error
