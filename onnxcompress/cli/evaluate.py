"""`onnxcompress evaluate`: task metric, or agreement with a reference."""

from __future__ import annotations

import json
from typing import Any

import click

from onnxcompress.cli import options as shared
from onnxcompress.cli.console import output, progress_for


@click.command("evaluate")
@click.argument("source", metavar="MODEL")
@click.option("--data", required=True, metavar="SPEC", help="Inputs; labels under y.")
@click.option("--reference", metavar="MODEL", help="Compare with this network on the same inputs.")
@shared.metric_option
@shared.preprocess_option
@shared.execution_options
@shared.seed_option
@shared.json_option
@shared.quiet_option
def evaluate_command(source: str, reference: str | None, **values: Any) -> None:
    """Measure MODEL's metric on labelled data, or its distance from a reference network.

    Every figure comes with its 95 % interval and the number of samples.
    """
    from onnxcompress.analyse.sizes import input_specs
    from onnxcompress.calibrate.inputs import open_data
    from onnxcompress.load.checks import check_structure
    from onnxcompress.load.source import read_source
    from onnxcompress.report.build import data_summary, environment, json_safe
    from onnxcompress.verify.compare import compare, evaluate
    from onnxcompress.verify.metrics import parse_metric

    execution = shared.make_execution(values["providers"], values["threads"])
    model = read_source(shared.model_source(source))
    check_structure(model.model)
    data = open_data(values["data"], input_specs(model.model), values["preprocess"], "--data")
    name = values["metric"] or ("top1" if data.labels is not None else "agreement")
    metric = parse_metric(name)
    report: dict[str, Any] = {
        "model": model.label,
        "data": data_summary(data),
        "environment": environment(execution, values["seed"]),
    }
    with progress_for(quiet=values["quiet"]) as progress:
        progress.stage("evaluate")
        if reference is None:
            result = evaluate(
                model.model, data, metric, execution, seed=values["seed"], progress=progress.step
            )
            report["metric"] = result.to_dict()
        else:
            other = read_source(shared.model_source(reference))
            check_structure(other.model)
            comparison = compare(
                other.model,
                model.model,
                data,
                metric,
                execution,
                seed=values["seed"],
                progress=progress.step,
            )
            drop = comparison.drop
            report |= {
                "reference": other.label,
                "metric": comparison.after.to_dict(),
                "reference_metric": comparison.before.to_dict(),
                "drop": drop.to_dict() if drop else None,
                "fidelity": [f.to_dict() for f in comparison.fidelity],
            }
    if values["as_json"]:
        click.echo(json.dumps(json_safe(report), indent=2))
        return
    _show(json_safe(report))


def _show(report: dict[str, Any]) -> None:
    output.print(_line(report["model"], report["metric"]), markup=False)
    if "reference" not in report:
        return
    output.print(_line(report["reference"], report["reference_metric"]), markup=False)
    if report["drop"]:
        low, high = report["drop"]["ci95"]
        output.print(
            f"drop {report['drop']['points']:.2f} points [{low:.2f}, {high:.2f}]", markup=False
        )
    for one in report["fidelity"]:
        output.print(
            f"output {one['name']}: relative L2 {_figure(one['relative_l2'])}, SNR "
            f"{_figure(one['snr_db'])} dB, largest difference {_figure(one['max_abs'])}",
            markup=False,
        )


def _line(name: str, metric: dict[str, Any]) -> str:
    low, high = metric["ci95"]
    if metric["name"] == "snr":
        return f"{name}: SNR {_figure(metric['value'])} dB [{_figure(low)}, {_figure(high)}]"
    return (
        f"{name}: {metric['name']} {100 * metric['value']:.2f} % "
        f"[{100 * low:.2f}, {100 * high:.2f}] over {metric['n']} samples"
    )


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
