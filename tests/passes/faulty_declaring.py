"""Passes that are not what they declare; each is Tucker-2 but for one fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from onnxcompress_passes.tucker2 import Tucker2, Tucker2Ranks


@dataclass(frozen=True)
class Shouting(Tucker2):
    """Name not in snake_case."""

    name: ClassVar[str] = "Tucker-2"


@dataclass(frozen=True)
class Silent(Tucker2):
    __doc__ = None


class Thawed(Tucker2):
    """Not a dataclass of its own, so that anything can be hung on it."""


@dataclass(frozen=True)
class Unexplained(Tucker2):
    """An option without help."""

    strength: int = 1


@dataclass(frozen=True)
class Demanding(Tucker2):
    """An option without a default."""

    strength: int = field(metadata={"help": "how strong"}, kw_only=True)


@dataclass(frozen=True)
class Forgetful(Tucker2):
    """Loses its options in a pickle."""

    def __reduce__(self) -> Any:
        return Forgetful, ()


@dataclass(frozen=True)
class Lenient(Tucker2):
    """Takes any values for a setting."""

    def load_setting(self, values: dict[str, Any]) -> Tucker2Ranks:
        return Tucker2Ranks(values.get("rank_out", 1), values.get("rank_in", 1))


@dataclass(frozen=True)
class Abrupt(Tucker2):
    """Meets values that do not fit with an error that is not ours."""

    def load_setting(self, values: dict[str, Any]) -> Tucker2Ranks:
        return Tucker2Ranks(values["rank_out"], values["rank_in"], values["triple"])


@dataclass(frozen=True)
class Abridged(Tucker2):
    """Loses a field of the setting on the way through a plan file."""

    def load_setting(self, values: dict[str, Any]) -> Tucker2Ranks:
        return super().load_setting({k: v for k, v in values.items() if k != "triple"})


FAULTS: Mapping[str, tuple[tuple[Tucker2, str], ...]] = {
    "check_declared": (
        (Shouting(), "not snake_case"),
        (Silent(), "docstring"),
        (Thawed(), "not a frozen dataclass"),
        (Unexplained(), "'strength' has no help"),
        (Demanding(strength=1), "'strength' has no default"),
    ),
    "check_default_constructible_and_picklable": (
        (Demanding(strength=1), "Demanding.. fails"),
        (Forgetful(rank="full"), "made again from pickle"),
    ),
    "check_settings_are_guarded": (
        (Lenient(), "took values that make no sense"),
        (Abrupt(), "KeyError"),
    ),
    "check_replay": ((Abridged(), "the setting is"),),
}
