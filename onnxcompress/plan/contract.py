"""The contract between the engine and a pass.

A pass looks (`sites`), weighs (`candidates`) and acts (`rewrite`). Looking and weighing only
read; acting goes through the Editor. Costs, locality and exactness are checked by the engine for
every pass; nothing is believed.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints

import onnx

from onnxcompress.analyse.facts import Facts, Need
from onnxcompress.errors import UsageError
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editor import Editor
from onnxcompress.plan.correspondence import Kept

S = TypeVar("S")


@dataclass(frozen=True)
class Site:
    """A node that a pass can rewrite."""

    pass_name: str
    node: str


@dataclass(frozen=True)
class Refusal:
    """A node that a pass looked at and leaves alone, and why.

    Attributes:
        pass_name: the pass.
        node: the node.
        reason: why, in words.
        see: the pass that covers this kind of layer; where that one takes part, it has the say.
    """

    pass_name: str
    node: str
    reason: str
    see: str = ""


@dataclass(frozen=True)
class Candidate(Generic[S]):
    """One way of rewriting one site: data only, so that it can be planned, saved and replayed.

    Attributes:
        site: what is rewritten.
        setting: the pass's own frozen description (ranks, widths, ...), JSON-serialisable.
        touches: names of the nodes that disappear or change; no other node may.
        before: counted cost of those nodes with their constants.
        after: counted cost of what replaces them.
        damage: predicted relative increase of the squared error at the output of the layer;
            0 means lossless.
        removes: those of the nodes that disappear with nothing in their place; what another
            candidate would do to them alone is then void.
        recommended: the candidate that the pass's own rule picks when there is nothing to plan by.
        shifts: those of the nodes of which only the bias changes; another pass may rewrite them
            as well.
        narrows: those of the nodes that lose channels and are otherwise what they were.
        follows: whether it can be carried out on a node that lost channels, too.
        stored: whether it only changes how constants are stored: ONNX Runtime computes them once,
            when it loads the model, and takes as long as with those in their place.
    """

    site: Site
    setting: S
    touches: tuple[str, ...]
    before: Cost
    after: Cost
    damage: float
    recommended: bool = False
    removes: tuple[str, ...] = ()
    shifts: tuple[str, ...] = ()
    narrows: tuple[str, ...] = ()
    follows: bool = False
    stored: bool = False

    @property
    def saving(self) -> Cost:
        """What the rewrite saves (negative where it costs)."""
        return self.before - self.after

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the plan file."""
        return {
            "pass": self.site.pass_name,
            "node": self.site.node,
            "setting": dataclasses.asdict(self.setting),  # type: ignore[call-overload]
            "touches": list(self.touches),
            "before": dataclasses.asdict(self.before),
            "after": dataclasses.asdict(self.after),
            "damage": self.damage,
        }


class Pass(abc.ABC, Generic[S]):
    """A kind of rewrite. Subclasses are frozen dataclasses whose fields are their options.

    Every field has a default and `metadata={"help": ...}`; `name` equals the entry point's name.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    in_balanced: ClassVar[bool] = True
    """Whether the recipe `balanced` has this pass."""
    goes_first: ClassVar[bool] = False
    """Whether it is carried out before the other passes look at the model: it changes no output."""
    setting_type: ClassVar[type]
    """The frozen dataclass of `Candidate.setting`."""

    @abc.abstractmethod
    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        """Where this pass applies; or, for nodes of its kind where it does not, why not."""

    @abc.abstractmethod
    def candidates(self, site: Site, facts: Facts) -> Sequence[Candidate[S]]:
        """Ways of rewriting `site`, the loosest first; with default options that is lossless.

        A later candidate costs no more and damages no less than the one before it. An empty
        sequence is not allowed: a site that turns out hopeless raises `NoCandidate`.
        """

    @abc.abstractmethod
    def rewrite(self, candidate: Candidate[S], edit: Editor) -> None:
        """Carry out `candidate`. Only nodes named in its `touches` may change."""

    def rewrite_together(self, candidates: Sequence[Candidate[S]], edit: Editor) -> None:
        """Carry out several candidates on one graph; one after the other unless overridden.

        A pass whose candidates touch the same nodes works out all edits from the original graph
        here, so that they do not depend on their order.
        """
        for candidate in candidates:
            self.rewrite(candidate, edit)

    def saving_together(self, candidates: Sequence[Candidate[S]], facts: Facts) -> Cost:
        """What several candidates save when all are carried out; counted, as `after` is.

        The sum of what each saves by itself, unless a pass whose candidates share nodes knows more.
        """
        return sum((candidate.saving for candidate in candidates), Cost())

    def describe(self, setting: S) -> str:
        """A setting in a few words, for tables."""
        values = dataclasses.asdict(setting).values()  # type: ignore[call-overload]
        return "x".join(str(value) for value in values if not isinstance(value, bool))

    def needs_data(self, setting: S) -> bool:
        """Whether carrying out this setting takes calibration inputs (a replay may have none)."""
        return False

    @property
    def works_together(self) -> bool:
        """Whether all candidates are carried out at once, so that they may share nodes."""
        return type(self).rewrite_together is not Pass.rewrite_together

    def reference(self, candidates: Sequence[Candidate[S]], edit: Editor) -> bool:
        """Turn the graph into what it must equal, on every input, once these are carried out.

        Returns:
            Whether there is such a reference; without one (the default) nothing is compared.
        """
        return False

    def kept_channels(self, candidates: Sequence[Candidate[S]], edit: Editor) -> Kept:
        """Which channels of the original's tensors are left once these are carried out.

        Repair holds what is left of a tensor to the same part of the original's.

        Args:
            candidates: what is carried out.
            edit: an editor of the original graph, of which nothing is to be changed.

        Returns:
            By name of a tensor that loses channels, its axis and the indices that stay.
        """
        return {}

    def excerpts(
        self, candidate: Candidate[S], facts: Facts
    ) -> Sequence[tuple[onnx.ModelProto, onnx.ModelProto]] | None:
        """Pairs of small models, before and after, that are timed to weigh a candidate.

        None (the default) lets the engine cut out the one layer of the site and rewrite it.
        """
        return None

    def load_setting(self, values: dict[str, Any]) -> S:
        """A setting from the plan file's values.

        Raises:
            UsageError: the values do not fit this pass.
        """
        if not isinstance(values, dict):
            raise UsageError(f"setting {values!r} does not fit pass '{self.name}'")
        kinds = get_type_hints(self.setting_type)
        for key, value in values.items():
            kind = kinds.get(key)
            if kind in {int, float, str, bool} and type(value) is not kind:
                raise UsageError(
                    f"setting {key}={value!r} of pass '{self.name}' must be of type {kind.__name__}"
                )
        try:
            return self.setting_type(**values)  # type: ignore[no-any-return]
        except TypeError as error:
            raise UsageError(f"setting {values} does not fit pass '{self.name}'") from error


class NoCandidate(Exception):  # noqa: N818  (a finding, not an error)
    """Raised by `candidates` when a site has nothing to offer; the message is the reason."""


def candidate_from_dict(values: dict[str, Any], owner: Pass[Any]) -> Candidate[Any]:
    """Read a candidate back from a plan file.

    Raises:
        UsageError: a field is missing or of the wrong kind.
    """
    try:
        return Candidate(
            site=Site(values["pass"], values["node"]),
            setting=owner.load_setting(values["setting"]),
            touches=_names(values["touches"]),
            before=_cost(values["before"]),
            after=_cost(values["after"]),
            damage=float(values["damage"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"plan entry for node {values.get('node')!r} is malformed: {error}"
        ) from error


def _names(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(name, str) for name in values):
        raise TypeError(f"touches must be a list of node names, not {values!r}")
    return tuple(values)


def _cost(values: Any) -> Cost:
    if not all(type(value) is int for value in values.values()):
        raise TypeError(f"a cost must hold whole numbers, not {values!r}")
    return Cost(**values)
