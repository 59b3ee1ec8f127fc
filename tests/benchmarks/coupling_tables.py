"""The results of coupling_sweep.py and peers.py as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import architectures

RATIO = 0.25  # what every peer was asked to remove of every convolution
OUTPUT = "the graph's output * shows it"
LARGE = ("torchvision__resnet152", "torchvision__densenet201")
Record = Mapping[str, Any]
Records = Mapping[str, Record]


def tables(results: Records, peers: Mapping[str, Records]) -> str:
    """Return all tables.

    Args:
        results: what coupling_sweep.py found, by case.
        peers: what peers.py found, by peer and case; may be empty.
    """
    torch_pruning, onnxsim = peers.get("torch_pruning", {}), peers.get("onnxsim", {})
    parts = [
        section("Networks of the shared folder", SHARED_HEAD, shared(results)),
        section(
            "torchvision", PEERS_HEAD, compared("torchvision", results, torch_pruning, onnxsim)
        ),
        section("timm, by family", PEERS_HEAD, compared("timm", results, torch_pruning, onnxsim)),
        NOTES,
        section("Why layers are declined", REASONS_HEAD, reasons(results)),
        section("Counts", COUNTS_HEAD, counts(results, torch_pruning, onnxsim)),
        section("Seconds of coupling", COST_HEAD, cost(results, torch_pruning)),
    ]
    bad = [[case, short(r["detail"], 300)] for case, r in results.items() if failed(r)]
    if bad:
        parts.append(section("Wrong or crashed", "| case | what happened |", bad))
    return "\n\n".join(parts) + "\n"


SHARED_HEAD = (
    "| network | Conv channels | prunable | with dense layers | groups | classes | worst error "
    "| outcome | layers that stay, in whole or in part, and why |"
)
PEERS_HEAD = (
    "| architecture | Conv channels | torchscript | dynamo | with dense layers | groups "
    "| worst error | Torch-Pruning: in groups | its pruner | onnxsim: torchscript "
    "| onnxsim: dynamo |"
)
REASONS_HEAD = "| reason | files | layers | channels |"
COUNTS_HEAD = "| | torchvision | timm |"
COST_HEAD = (
    "| architecture | nodes that make channels | torchscript | dynamo "
    "| Torch-Pruning: dependency graph |"
)
NOTES = (
    "Ours: share of the output channels of all Conv that may go ('with dense layers': of Conv, "
    "ConvTranspose, Gemm and MatMul with weights, the classifier included); each file was pruned "
    "by a quarter of every group and compared with the original in which these channels are zero. "
    "Error: relative L2, the worst of all comparisons; in brackets in float64, where float32 "
    "rounds by more than 1e-5. A Conv that makes the output stays; Torch-Pruning offers a group "
    "for it, too. Torch-Pruning: share of the channels of all Conv2d in a group that passes its "
    "own check, then whether its pruner ran and the result runs (not whether it is right). "
    "onnxsim: channels removed, as a share of the quarter that was asked for; 'invalid' where the "
    "full check of onnx refuses the result."
)


def section(title: str, head: str, rows: Iterable[Sequence[object]]) -> str:
    """Return a table under a title."""
    lines = [f"### {title}", "", head, "|---" * (head.count("|") - 1) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def shared(results: Records) -> list[list[object]]:
    """Rows of the shared networks."""
    return [
        [
            case.removeprefix("shared__"),
            r.get("conv_channels", "-"),
            share(r),
            share(r, "layer"),
            r.get("groups", "-"),
            r.get("classes", "-"),
            error([r]),
            r["outcome"],
            "; ".join(why(r)) or "-",
        ]
        for case, r in results.items()
        if case.startswith("shared__")
    ]


def why(record: Record) -> list[str]:
    """Words for what stays in one network."""
    found = [
        f"{layers} ({channels} channels): {short(reason, 90)}"
        for reason, (layers, channels) in record.get("reasons", {}).items()
    ]
    if record.get("other_layers"):
        found.append(f"{record['other_layers']} quantised Conv (QLinearConv) make no channels")
    return found


def compared(
    source: str, results: Records, torch_pruning: Records, onnxsim: Records
) -> list[list[object]]:
    """Rows of one source: ours for both exporters beside the peers."""
    rows: list[list[object]] = []
    for name in names(source):
        base = f"{source}__{name}"
        both = [results.get(f"{base}__{exporter}") for exporter in architectures.EXPORTERS]
        known = [r for r in both if r is not None]
        if not known:
            continue
        peer = torch_pruning.get(base, {})
        title = name if source == "torchvision" else f"{family(name)}: {name}"
        rows.append(
            [
                title,
                next((r["conv_channels"] for r in known if "conv_channels" in r), "-"),
                *("-" if r is None else share(r) + flaw(r) for r in both),
                share(known[0], "layer"),
                " / ".join(str(r.get("groups", "-")) for r in known),
                error(known),
                peer_groups(peer),
                peer_result(peer),
                *(simplified(onnxsim.get(f"{base}__{e}", {})) for e in architectures.EXPORTERS),
            ]
        )
    return rows


def names(source: str) -> list[str]:
    """Architectures of a source: torchvision's in the order of the sweep, timm's by family."""
    if source == "torchvision":
        return list(architectures.TORCHVISION)
    return [name for family in architectures.TIMM.values() for name in family]


def family(name: str) -> str:
    """The family of a timm architecture."""
    return next(key for key, members in architectures.TIMM.items() if name in members)


def peer_groups(peer: Record) -> str:
    """What Torch-Pruning has groups for."""
    if "graph_error" in peer:
        return exception(peer["graph_error"])
    if "grouped_channels" not in peer:
        return "-"
    return percent(peer["grouped_channels"], peer["channels"])


def peer_result(peer: Record) -> str:
    """What became of Torch-Pruning's result."""
    result = peer.get("pruned", "-")
    return "runs" if result == "ok" else exception(result)


def exception(text: str) -> str:
    """'step: Kind' of a longer message."""
    found = re.match(r"((?:\w+: )?\w*(?:Error|Exception))", text)
    return found[1] if found else short(text, 40)


def simplified(peer: Record) -> str:
    """What onnxsim removed, and whether the result is valid."""
    if peer.get("pruned") != "ok":
        return exception(peer.get("pruned", "-"))
    words = percent(peer["channels_removed"], RATIO * peer["channels"])
    if peer["runs"] != "ok":
        return f"{words}, does not run"
    return words if peer["checker"] == "ok" else f"{words}, invalid"


def reasons(results: Records) -> list[list[object]]:
    """Every reason with how often it was given over all files."""
    found: dict[str, list[int]] = {}
    for record in results.values():
        for reason, (layers, channels) in record.get("reasons", {}).items():
            total = found.setdefault(reason, [0, 0, 0])
            for at, count in enumerate((1, layers, channels)):
                total[at] += count
    ranked = sorted(found.items(), key=lambda item: -item[1][1])
    return [[short(reason, 120), *numbers] for reason, numbers in ranked]


def counts(results: Records, torch_pruning: Records, onnxsim: Records) -> list[list[object]]:
    """How many architectures each tool handles, or how many exported files."""
    rows: dict[str, list[str]] = {}
    for source in ("torchvision", "timm"):
        bases = [f"{source}__{name}" for name in names(source)]
        ours = [[results[k] for k in files(b) if k in results] for b in bases]
        ours = [both for both in ours if both]
        theirs = [torch_pruning[b] for b in bases if b in torch_pruning]
        simple = [onnxsim[k] for b in bases for k in files(b) if k in onnxsim]
        single = [r for both in ours for r in both]
        checks: dict[str, list[bool]] = {
            "ours: pruned exactly, both exporters": [all(map(exact, both)) for both in ours],
            "ours: every Conv channel prunable": [all(map(entire, both)) for both in ours],
            "ours: everything prunable but what makes the output": [
                all(set(r.get("reasons", {})) <= {OUTPUT} for r in both) for both in ours
            ],
            "ours: files pruned exactly": [exact(r) for r in single],
            "ours: files declined as a whole": [r["outcome"] == "declined" for r in single],
            "ours: files wrong or crashed": [failed(r) for r in single],
            "Torch-Pruning: a group for every Conv": [
                t.get("grouped_channels", -1) == t.get("channels") for t in theirs
            ],
            "Torch-Pruning: pruned, and the result runs": [t.get("pruned") == "ok" for t in theirs],
            "onnxsim: files of which something is pruned, and that run": list(map(runs, simple)),
            "onnxsim: files that pass the full check of onnx besides": list(map(valid, simple)),
            "onnxsim: files pruned by the quarter of every Conv, and that run": [
                runs(r) and r["channels_removed"] >= 0.99 * RATIO * r["channels"] for r in simple
            ],
        }
        for words, found in checks.items():
            rows.setdefault(words, []).append(f"{sum(found)} of {len(found)}")
    return [[words, *cells] for words, cells in rows.items()]


def cost(results: Records, torch_pruning: Records) -> list[list[object]]:
    """Seconds of coupling, of large networks one by one and of all networks in the median."""
    rows: list[list[object]] = []
    for base in LARGE:
        both = [results.get(key, {}) for key in files(base)]
        theirs = torch_pruning.get(base, {})
        title = base.split("__")[1]
        made = next((r["layers"] for r in both if "layers" in r), "-")
        rows.append([title, made, *map(seconds, both), seconds(theirs)])
    medians = [
        middle(r for k, r in results.items() if k.endswith(f"__{exporter}"))
        for exporter in architectures.EXPORTERS
    ]
    rows.append(["median of all", "-", *medians, middle(torch_pruning.values())])
    return rows


def middle(records: Iterable[Record]) -> str:
    """Median and largest number of seconds."""
    times = sorted(r["seconds"] for r in records if "seconds" in r)
    if not times:
        return "-"
    return f"{times[len(times) // 2]:.2f}, at most {times[-1]:.2f}"


def files(base: str) -> list[str]:
    """The cases of one architecture."""
    return [f"{base}__{exporter}" for exporter in architectures.EXPORTERS]


def exact(record: Record) -> bool:
    """Whether something was removed, and rightly."""
    return bool(record["outcome"] == "exact")


def entire(record: Record) -> bool:
    """Whether every channel of every Conv may go, and was shown to go rightly."""
    return exact(record) and record["conv_free"] == record["conv_channels"]


def failed(record: Record) -> bool:
    """Whether the engine broke its promise."""
    return record["outcome"] in {"wrong", "crash"}


def runs(peer: Record) -> bool:
    """Whether onnxsim removed something and left a model that runs."""
    done = peer.get("pruned") == "ok" and peer.get("channels_removed", 0) > 0
    return bool(done and peer["runs"] == "ok")


def valid(peer: Record) -> bool:
    """Whether the full check of onnx passes what is left, too."""
    return runs(peer) and bool(peer["checker"] == "ok")


def flaw(record: Record) -> str:
    """The outcome where it is not that something was removed rightly."""
    return "" if exact(record) else f", {record['outcome']}"


def share(record: Record, kind: str = "conv") -> str:
    """Which part of the channels may go."""
    if not record.get(f"{kind}_channels"):
        return "-"
    return percent(record[f"{kind}_free"], record[f"{kind}_channels"])


def percent(part: float, whole: float) -> str:
    """A share in percent; 100 only where it is."""
    value = 100 * part / whole
    return f"{value:.1f} %" if round(value, 1) not in {0.0, 100.0} else f"{value:.4g} %"


def error(records: Iterable[Record]) -> str:
    """The worst error in float32, and in float64 where that had to decide."""
    worst = [r["error"] for r in records if "error" in r]
    double = [r["double_error"] for r in records if "double_error" in r]
    words = f"{max(worst):.0e}" if worst else "-"
    return words + (f" [{max(double):.0e}]" if double else "")


def seconds(record: Record) -> str:
    """Seconds of one network."""
    return f"{record['seconds']:.2f}" if "seconds" in record else "-"


def short(text: str, most: int) -> str:
    """Text that fits into a cell."""
    one = text.replace("|", "/").replace("\n", " ").replace("*", "\\*")
    return one if len(one) <= most else one[: most - 1] + "…"
