"""`onnxcompress inspect`: layers, cost, and what each pass could do, or why not."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import click

from onnxcompress.cli import options as shared
from onnxcompress.cli.console import errors, output


@click.command("inspect")
@click.argument("source", metavar="MODEL")
@click.option(
    "--pass",
    "passes",
    multiple=True,
    metavar="NAME[:KEY=VALUE,...]",
    help="A pass to ask; repeat for several [default: every installed pass].",
)
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Show what this plan would do, and whether it fits MODEL.",
)
@click.option(
    "--programs",
    is_flag=True,
    help="Show kernels as programs: those that MODEL holds, and how short others could be.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="With --programs: draw kernels with their programs, curves of the other layers and, with "
    "--data, trees of filters.",
)
@click.option(
    "--data",
    metavar="SPEC",
    help="With --programs: inputs by whose responses the filters of every layer are compared.",
)
@shared.preprocess_option
@shared.size_options
@shared.json_option
def inspect_command(
    source: str,
    passes: tuple[str, ...],
    plan_file: Path | None,
    programs: bool,
    picture: Path | None,
    data: str | None,
    preprocess: str | None,
    shapes: tuple[str, ...],
    batch: int | None,
    as_json: bool,
) -> None:
    """List every layer of MODEL with its cost and what each pass could do there, or why not.

    And other nodes that a pass could do something about. With the channels that have to go
    together. With --plan, what that plan would do to MODEL. With --programs, the kernels of its
    convolutions as programs. Nothing is written but the --picture.
    """
    from onnxcompress.analyse.facts import analyse
    from onnxcompress.analyse.sizes import input_specs, parse_shape, representative_sizes
    from onnxcompress.calibrate.inputs import open_data
    from onnxcompress.calibrate.samples import sample_sizes
    from onnxcompress.cli.inspect_plan import plan_summary, show_plan
    from onnxcompress.cli.inspect_programs import programs_summary, show_programs
    from onnxcompress.cli.tables import layers, number, octets
    from onnxcompress.errors import UsageError
    from onnxcompress.load.canonical import canonicalise
    from onnxcompress.load.source import read_source
    from onnxcompress.plan.options import collect
    from onnxcompress.plan.registry import make_pass, parse_pass, registered

    if plan_file is not None and passes:
        raise UsageError("--plan says which passes take part: leave out --pass")
    if picture is not None and not programs:
        raise UsageError("--picture goes with --programs")
    if data is not None and not programs:
        raise UsageError("--data goes with --programs")
    if data is not None and data.split(":")[0] == "random":
        raise UsageError("--data: filters are compared on real inputs, not on random ones")
    if preprocess is not None and data is None:
        raise UsageError("--preprocess goes with --data")
    if programs and (plan_file is not None or passes):
        raise UsageError("--programs goes without --plan and --pass")
    chosen = tuple(parse_pass(text) for text in passes) or tuple(make_pass(n) for n in registered())
    given = read_source(shared.model_source(source))
    canonical = canonicalise(given.model)
    samples = None
    if data is not None:
        samples = open_data(data, input_specs(given.model), preprocess, "--data")
    sizes = representative_sizes(
        canonical.model,
        dict(parse_shape(text) for text in shapes),
        batch=batch,
        seen=sample_sizes(samples) if samples is not None else None,
    )
    facts = analyse(canonical.model, sizes)
    if plan_file is not None:
        summary = {"model": given.label, **plan_summary(facts, plan_file)}
        if as_json:
            click.echo(json.dumps(summary, indent=2))
        else:
            show_plan(summary, output)
        return
    if programs:
        found = programs_summary(given.model, facts, picture, samples)
        if as_json:
            click.echo(json.dumps({"model": given.label, "layers": found}, indent=2))
        else:
            show_programs(found, output)
        return
    rows = _rows(facts, collect(facts, chosen), chosen)
    total = facts.total()
    summary = {
        "model": given.label,
        "sizes": {name: list(size) for name, size in sizes.items()},
        "params": total.params,
        "macs": total.macs,
        "file_bytes": given.file_bytes,
        "canonical_form": list(canonical.notes),
        "layers": rows,
    }
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    for note in canonical.notes:
        errors.print(f"note: {note}", style="dim", markup=False)
    layers(rows, output)
    at = ", ".join(f"{name} {list(size)}" for name, size in sizes.items())
    output.print(
        f"{number(total.params)} parameters, {number(total.macs)} MACs, file "
        f"{octets(given.file_bytes)}, at {at}",
        markup=False,
    )


def _rows(facts: Any, offers: Any, passes: Any) -> list[dict[str, Any]]:
    from onnxcompress.graph.cost import COUNTED_OPERATORS, activation_bytes

    owners = {owner.name: owner for owner in passes}
    coupled = _coupled(facts, passes)
    words: dict[str, list[str]] = defaultdict(list)
    for candidates in offers.sites:
        site = candidates[0].site
        text = _offer(candidates, owners[site.pass_name])
        if owners[site.pass_name].works_together:
            text += _company(coupled.get(site.node, {}))
        words[site.node].append(text)
    for node, found in coupled.items():
        if "group" in found and found["group"] != node:
            words[node].append(f"goes with '{found['group']}'")
    offered = frozenset(words)
    for refusal in offers.refusals:
        # Where one pass has an offer, the others' "not my kind of layer" is noise.
        if refusal.node not in offered:
            words[refusal.node].append(f"{refusal.pass_name}: no, {refusal.reason}")
    shapes = facts.shapes()
    rows = []
    for node in facts.model.graph.node:
        layer = node.op_type in COUNTED_OPERATORS
        if not layer and node.name not in offered:
            continue
        cost = facts.cost(node.name)
        operands = node.input[1:] if layer else ()
        weight = next((n for n in operands if facts.view.is_constant(n)), "")
        dims = list(facts.view.initializers[weight].dims) if weight else []
        rows.append(
            {
                "node": node.name,
                "op": node.op_type,
                "shape": "x".join(map(str, dims)),
                "output": list(shapes.get(node.output[0], ())),
                "macs": cost.macs,
                "params": cost.params,
                "weight_bytes": cost.weight_bytes,
                "activation_bytes": activation_bytes(node, shapes, facts.view),
                "coupling": coupled.get(node.name),
                "passes": words[node.name] or ["none of the passes asked covers it"],
            }
        )
    return rows


def _coupled(facts: Any, passes: Any) -> dict[str, dict[str, Any]]:
    """By layer: its group with everything that goes along, or why its channels must stay."""
    from onnxcompress.analyse.facts import Need
    from onnxcompress.errors import ModelError

    if not any(Need.COUPLING in owner.needs for owner in passes):
        return {}
    try:
        coupling = facts.coupling()
    except ModelError:
        # The passes' refusals tell why.
        return {}
    found: dict[str, dict[str, Any]] = {
        node: {"reason": reason} for node, reason in coupling.refusals.items()
    }
    for group in coupling.groups:
        entry = {
            "group": group.name,
            "channels": group.width,
            "producers": list(group.producers),
            "consumers": list(group.consumers),
        }
        found.update(dict.fromkeys(group.producers, entry))
    return found


def _company(found: dict[str, Any]) -> str:
    """What a group of channels would take along, in words."""
    if "group" not in found:
        return ""
    others = [name for name in found["producers"] if name != found["group"]]
    text = f"; {found['channels']} channels"
    if others:
        more = f" and {len(others) - 2} more" if len(others) > 2 else ""
        text += " with " + ", ".join(f"'{name}'" for name in others[:2]) + more
    return text + f", read by {len(found['consumers'])}"


def _offer(candidates: Any, owner: Any) -> str:
    """The range on offer and the recommended setting, in words."""
    name = candidates[0].site.pass_name
    before = max(1, candidates[0].before.macs)
    if owner.goes_first:
        return f"{name}: {owner.describe(candidates[-1].setting)}"
    lossy = [c for c in candidates if c.damage > 0]
    if not lossy:
        return f"{name}: lossless form only"
    ends = f"MACs x{lossy[0].after.macs / before:.2f}..x{lossy[-1].after.macs / before:.2f}"
    if len(lossy) == 1:
        ends = f"MACs x{lossy[0].after.macs / before:.2f}"
    recommended = [c for c in candidates if c.recommended]
    if not recommended:
        return f"{name}: {ends}" + ("" if owner.works_together else "; its rule drops nothing")
    share = recommended[0].after.macs / before
    error = recommended[0].damage
    taken = owner.describe(recommended[0].setting)
    return f"{name}: {ends}; its rule takes {taken} (MACs x{share:.2f}, error {error:.3f})"
