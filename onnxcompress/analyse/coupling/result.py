"""What the coupling engine finds: groups of channels, where they lie, and why others must stay."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxcompress.analyse.coupling.flow import Ids, Values
from onnxcompress.analyse.coupling.shuffles import Shuffle
from onnxcompress.errors import PassError


@dataclass(frozen=True)
class Lane:
    """The axis of a tensor along which channels lie.

    Attributes:
        axis: the axis.
        classes: class of every index along it, FIXED for what always stays.
        values: what an index is when its channel is zero at its producers; NaN where that is not
            one constant.
    """

    axis: int
    classes: Ids
    values: Values

    def kept(self, removed: Collection[int]) -> NDArray[np.intp]:
        """The indices that stay when these classes are removed."""
        return np.flatnonzero(~np.isin(self.classes, list(removed)))


@dataclass(frozen=True)
class Group:
    """Layers whose channels go together, and the classes of channels that may go.

    Attributes:
        name: the first producer, in order of execution.
        producers: layers that make the channels.
        consumers: layers that read them.
        channels: the classes, in the order in which the producers make them; channel i of the
            group is all ids of class `channels[i]`.
        tensors: tensors that carry them.
        covers: sets of positions in `channels` of which one at least has to stay, because a
            tensor would be empty otherwise.
    """

    name: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    channels: tuple[int, ...]
    tensors: tuple[str, ...]
    covers: tuple[tuple[int, ...], ...]

    @property
    def width(self) -> int:
        """How many channels may be removed, one at a time."""
        return len(self.channels)


@dataclass(frozen=True)
class Coupling:
    """The coupling of one model.

    Attributes:
        groups: what can be cut, in order of execution.
        refusals: for every layer with channels that cannot be cut at all, the reason.
        lanes: tensor by tensor, where channels lie; only of tensors with channels that may go.
        producers: output tensor of every layer that makes channels.
        joint_covers: sets of (group, channel) of which one at least has to stay, too: parts of
            concatenations.
        reasons: why classes that are not in a group must stay.
        shuffles: chains of nodes that only permute channels, by their first node.
        shapes: shape of every tensor; of two samples where the batch is free.
    """

    groups: tuple[Group, ...]
    refusals: Mapping[str, str]
    lanes: Mapping[str, Lane]
    producers: Mapping[str, str]
    joint_covers: tuple[tuple[tuple[str, int], ...], ...]
    reasons: Mapping[int, str] = field(repr=False)
    shuffles: Mapping[str, Shuffle] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)

    def group(self, name: str) -> Group:
        """The group called `name`.

        Raises:
            PassError: there is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise PassError(f"there is no group of channels called '{name}'")

    def group_of(self, layer: str) -> Group | None:
        """The group of the channels that a layer makes."""
        for group in self.groups:
            if layer in group.producers:
                return group
        return None

    def classes(self, removed: Mapping[str, Sequence[int]]) -> frozenset[int]:
        """The classes behind channel numbers, by name of their group.

        Raises:
            PassError: there is no such group or channel, or nothing of a tensor would be left.
        """
        found: set[int] = set()
        for name, channels in removed.items():
            group = self.group(name)
            wrong = [c for c in channels if not 0 <= c < group.width]
            if wrong:
                raise PassError(
                    f"group '{name}' has channels 0 to {group.width - 1}, not {wrong[0]}"
                )
            for cover in group.covers:
                if set(cover) <= set(channels):
                    raise PassError(f"nothing would be left of a tensor of group '{name}'")
            found.update(group.channels[c] for c in channels)
        for joint in self.joint_covers:
            if all(channel in removed.get(name, ()) for name, channel in joint):
                names = ", ".join(f"'{n}'" for n in dict.fromkeys(name for name, _ in joint))
                raise PassError(f"nothing would be left of a tensor of the groups {names}")
        return frozenset(found)

    def zeroed(self, classes: Collection[int]) -> dict[str, tuple[int, NDArray[np.intp]]]:
        """Axis and indices of what goes in every producer's output."""
        gone = list(classes)
        result: dict[str, tuple[int, NDArray[np.intp]]] = {}
        for tensor in self.producers.values():
            lane = self.lanes.get(tensor)
            if lane is not None:
                indices = np.flatnonzero(np.isin(lane.classes, gone))
                if len(indices):
                    result[tensor] = (lane.axis, indices)
        return result
