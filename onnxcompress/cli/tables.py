"""Reports as tables a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNITS = ("", "k", "M", "G", "T")


def number(value: float | int) -> str:
    """A count with a decimal prefix: 1234567 is 1.23M."""
    size, unit = float(value), 0
    while abs(size) >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000.0, unit + 1
    return f"{size:.0f}" if unit == 0 else f"{size:.3g}{_UNITS[unit]}"


def octets(value: int | None) -> str:
    """A number of bytes with a decimal prefix."""
    return "-" if value is None else f"{number(value)}B"


def percent_points(values: list[Any] | None) -> str:
    """An interval of a share, in per cent."""
    return "" if not values else f" [{100 * values[0]:.2f}, {100 * values[1]:.2f}]"


def before_after(report: Mapping[str, Any], console: Console) -> None:
    """The table at the end of a job: original against result."""
    before, after, remaining = report["before"], report["after"], report["remaining"]
    table = Table(box=box.SIMPLE_HEAD, title=f"{report['model']['name']}", title_justify="left")
    for heading in ("", "before", "after", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    for label, key, form in (
        ("parameters", "params", number),
        ("MACs", "macs", number),
        ("file", "file_bytes", octets),
        ("peak memory", "peak_memory_bytes", octets),
    ):
        ratio = after[key] / before[key] if before[key] and after[key] is not None else None
        table.add_row(
            label, form(before[key]), form(after[key]), f"{ratio:.3f}" if ratio is not None else "-"
        )
    low, high = report["latency_ratio"]["ci95"]
    # Paired by round, which a drift of the machine's speed does not touch; p50 pools all runs.
    ratio = f"paired {remaining['latency']:.3f} [{low:.3f}, {high:.3f}]"
    table.add_row(
        "latency p50", *(f"{m['latency_ms']['p50']:.3f} ms" for m in (before, after)), ratio
    )
    table.add_row("latency p95", *(f"{m['latency_ms']['p95']:.3f} ms" for m in (before, after)), "")
    if after["metric"] is not None:
        table.add_row(*_metric_row(before["metric"], after["metric"], report["drop"]))
    console.print(table, soft_wrap=False)
    _accuracy(report, console)
    _changed(report, console)


def _metric_row(before: Any, after: Any, drop: Any) -> tuple[str, str, str, str]:
    if after["name"] == "snr":
        return "worst SNR", "", f"{_db(after['value'])}", ""
    words = ""
    if drop is not None:
        low, high = drop["ci95"]
        words = f"drop {drop['points']:.2f} [{low:.2f}, {high:.2f}]"
    cells = (f"{100 * m['value']:.2f} %" for m in (before, after))
    return (after["name"], *cells, words)


def _db(value: Any) -> str:
    return f"{value:.1f} dB" if isinstance(value, float) else f"{value} dB"


def _accuracy(report: Mapping[str, Any], console: Console) -> None:
    if report["accuracy"]["verified"]:
        console.print(Text(f"accuracy: {report['accuracy']['words']}"))
        consulted = report["accuracy"]["consulted"]
        if consulted > 1:
            console.print(f"the held-out inputs were consulted {consulted} times")
    else:
        worst = min(report["fidelity"]["outputs"], key=lambda o: _sortable(o["snr_db"]))
        console.print(
            Text(
                "accuracy was NOT verified: there are no real inputs to judge on (SNR "
                f"{_db(worst['snr_db'])} on random ones); --data or --eval has it measured"
            )
        )
    if report["finetune"] is not None:
        console.print(Text(training_line(report["finetune"])))
    if report["then"] is not None:
        before = report["then"]["before_conversion"]["words"]
        console.print(Text(f"before conversion to {report['then']['precision']}: {before}"))
    if report["latency_ratio"]["slower"]:
        console.print(Text("the result is SLOWER than the original on this machine", style="bold"))


def training_line(told: Mapping[str, Any]) -> str:
    """What fine-tuning came to, in a sentence."""
    if not told["improved"]:
        return f"fine-tuning is left out: none of {len(told['epochs'])} epochs was better"
    measure = "agreement" if "agreement" in told else "relative_error"
    before, after = told[measure]
    return (
        f"fine-tuned for {told['seconds']:.0f} s, epoch {told['best_epoch']} of "
        f"{len(told['epochs'])} kept: {measure.replace('_', ' ')} with the teacher {after:.4g} on "
        f"{told['held_out']} inputs kept apart, {before:.4g} before"
    )


def _sortable(value: Any) -> float:
    return float(value) if value is not None else float("-inf")


def _changed(report: Mapping[str, Any], console: Console) -> None:
    lossless = report["lossless_latency_ratio"]
    if lossless is not None:
        console.print(f"before any lossy rewrite: {lossless:.3f} of the original's time")
    stages = report.get("stages", ())
    for number, stage in enumerate(stages, 1):
        console.print(Text(f"stage {number}: {stage_line(stage)}"))
    rows = report["layers"]
    done = [row for row in rows if row["pass"]]
    last = f"stage {len(stages) + 1}: " if stages else ""
    exact = f"{len(report['exact'])} exact rewrites; " if report["exact"] else ""
    console.print(
        f"{last}{exact}{len(done)} of {len(rows)} layers rewritten; the report says why the rest "
        "stay"
    )


def stage_line(stage: Mapping[str, Any]) -> str:
    """What an earlier stage of a job came to, in a line."""
    kinds = stage["plan"]["targets"]
    left = ", ".join(f"{kind} {stage['remaining'][kind]:.3f}" for kind in kinds)
    done = sum(bool(row["pass"]) for row in stage["layers"])
    return f"{left}, {done} layers rewritten; {stage['accuracy']['words']}"


def layers(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """One row per layer: cost, and what passes could do with it or why not."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading, justify in (
        ("layer", "left"),
        ("op", "left"),
        ("shape", "left"),
        ("MACs", "right"),
        ("params", "right"),
        ("what passes could do, or why not", "left"),
    ):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(
            Text(row["node"]),
            row["op"],
            row["shape"],
            number(row["macs"]),
            number(row["params"]),
            Text("\n".join(row["passes"])),
        )
    console.print(table, soft_wrap=False)
