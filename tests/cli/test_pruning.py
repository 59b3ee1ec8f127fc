"""Pruning from the command line: compress, report, plan, replay; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

HALF = ("--pass", "prune:channels=0.5", "--gate", "off", "--max-drop", "100")


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Weight by node."""
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    return {n.name: constants[n.input[1]] for n in model.graph.node if len(n.input) > 1}


def masked(model: onnx.ModelProto, kept: dict[str, list[int]]) -> onnx.ModelProto:
    """The tiny model with zeros in the filters and biases of channels that are not kept."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    for node in copy.graph.node:
        if node.name in kept:
            for name in node.input[1:]:
                values = onnx.numpy_helper.to_array(constants[name]).copy()
                gone = sorted(set(range(len(values))) - set(kept[node.name]))
                values[gone] = 0
                constants[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    return copy


def test_end_to_end(
    cli: Callable[..., Any], model: Path, samples: Path, tiny: onnx.ModelProto
) -> None:
    """Half of every layer's channels: the same interface, and what zeros in their place give."""
    out = model.with_name("out.onnx")
    outcome = cli("compress", model, out, *HALF, "--data", samples, "--repair", "off")
    assert outcome.code == 0, outcome.err
    small = onnx.load(out)
    onnx.checker.check_model(small, full_check=True)
    for field in ("input", "output"):
        assert list(getattr(small.graph, field)) == list(getattr(tiny.graph, field))
    shapes = {name: values.shape for name, values in weights(small).items()}
    assert shapes == {
        "conv1": (12, 3, 3, 3),
        "conv2": (16, 12, 3, 3),
        "point": (16, 16, 1, 1),
        "fc": (5, 16),
    }
    report = json.loads(out.with_name("out.onnx.report.json").read_text())
    (check,) = report["self_check"]
    assert (check["pass"],) == ("prune",)
    assert 0 <= check["relative_error"] < 1e-5
    assert check["samples"] == 8
    kept = {c["node"]: c["setting"]["kept"] for c in report["plan"]["chosen"]}
    assert {node: len(channels) for node, channels in kept.items()} == {
        "conv1": 12, "conv2": 16, "point": 16,
    }  # fmt: skip
    # The most important filters stay, by their norm.
    norms = {n: np.square(w.reshape(len(w), -1)).sum(axis=1) for n, w in weights(tiny).items()}
    for node, channels in kept.items():
        best = np.sort(np.argsort(norms[node])[-len(channels) :])
        assert channels == best.tolist()
    reference = model.with_name("masked.onnx")
    onnx.save(masked(tiny, kept), reference)
    with np.load(samples) as arrays:
        expected, found = run(reference, arrays["x"]), run(out, arrays["x"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_replayed_to_the_same_bytes(cli: Callable[..., Any], model: Path, samples: Path) -> None:
    """From the plan of a dry run, and from the plan in a report."""
    direct, again = model.with_name("direct.onnx"), model.with_name("again.onnx")
    assert cli("compress", model, direct, *HALF, "--data", samples).code == 0
    assert cli("compress", model, again, *HALF, "--data", samples, "--dry-run").code == 0
    plan = again.with_name("again.onnx.plan.json")
    assert not again.exists()
    outcome = cli("compress", model, again, "--plan", plan, "--data", samples, *HALF[4:])
    assert outcome.code == 0, outcome.err
    assert again.read_bytes() == direct.read_bytes()
    report = json.loads(direct.with_name("direct.onnx.report.json").read_text())
    taken = model.with_name("taken.json")
    taken.write_text(json.dumps(report["plan"]))
    third = model.with_name("third.onnx")
    options = ("--plan", taken, "--data", samples, *HALF[4:])
    assert cli("compress", model, third, *options).code == 0
    assert third.read_bytes() == direct.read_bytes()
    # A replay is checked like the job that made the plan.
    replayed = json.loads(third.with_name("third.onnx.report.json").read_text())
    assert [check["pass"] for check in replayed["self_check"]] == ["prune"]


def test_without_data(cli: Callable[..., Any], model: Path) -> None:
    """The self-check takes random inputs then."""
    out = model.with_name("out.onnx")
    assert cli("compress", model, out, *HALF[:4]).code == 0
    report = json.loads(out.with_name("out.onnx.report.json").read_text())
    assert [check["pass"] for check in report["self_check"]] == ["prune"]


@pytest.mark.parametrize("criterion", ["activation-mean", "activation-std", "apoz"])
def test_activations_without_data(refuse: Callable[..., Any], model: Path, criterion: str) -> None:
    option = f"prune:criterion={criterion},channels=0.5"
    out = model.with_name("out.onnx")
    words = ["activations", "--data", "criterion=weight"]
    refuse(2, "compress", model, out, "--pass", option, "--gate", "off", words=words)


@pytest.mark.parametrize("criterion", ["activation-mean", "activation-std", "apoz"])
def test_activations_with_data(
    cli: Callable[..., Any], model: Path, samples: Path, criterion: str
) -> None:
    out = model.with_name("out.onnx")
    form = f"prune:criterion={criterion},channels=0.75,per_step=8"
    outcome = cli("compress", model, out, "--pass", form, *HALF[2:], "--data", samples)
    assert outcome.code == 0, outcome.err
    report = json.loads(out.with_name("out.onnx.report.json").read_text())
    full = {"conv1": 24, "conv2": 32, "point": 32}
    chosen = {c["node"]: c["setting"]["kept"] for c in report["plan"]["chosen"]}
    assert chosen
    assert all(len(kept) == 0.75 * full[node] for node, kept in chosen.items())


def test_a_fraction_of_all_channels_together(cli: Callable[..., Any], model: Path) -> None:
    """44 of 24 + 32 + 32 stay, whichever they are; without data the rule decides."""
    out = model.with_name("out.onnx")
    form = "prune:criterion=random,channels=0.5,per_step=8,scope=global"
    assert cli("compress", model, out, "--pass", form, "--gate", "off").code == 0
    report = json.loads(out.with_name("out.onnx.report.json").read_text())
    kept = {c["node"]: len(c["setting"]["kept"]) for c in report["plan"]["chosen"]}
    assert set(kept) == {"conv1", "conv2", "point"}
    assert sum(kept.values()) == 44


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("prune:criterion=taste", ["criterion", "taste", "apoz"]),
        ("prune:channels=2", ["channels=2", "between 0 and 1"]),
        ("prune:scope=world", ["scope", "global"]),
        ("prune:round_to=-8", ["round_to=-8"]),
        ("prune:criterion=random,channels=0.5,seed=-1", ["seed"]),
        ("prune:width=3", ["width"]),
    ],
)
def test_options_that_make_no_sense(
    refuse: Callable[..., Any], model: Path, option: str, words: list[str]
) -> None:
    out = model.with_name("out.onnx")
    refuse(2, "compress", model, out, "--pass", option, "--gate", "off", words=words)


def test_a_target_is_met_by_what_is_counted(
    cli: Callable[..., Any], model: Path, samples: Path
) -> None:
    """Both sides of a layer lose channels, so savings do not add up; the result holds anyway."""
    out = model.with_name("out.onnx")
    options = ("--pass", "prune:round_to=1", *HALF[2:], "--data", samples)
    outcome = cli("compress", model, out, *options, "--target", "macs=0.5")
    assert outcome.code == 0, outcome.err
    before, after = (
        42 * sum(w.size for n, w in weights(onnx.load(path)).items() if n != "fc")
        + weights(onnx.load(path))["fc"].size
        for path in (model, out)
    )
    assert 0.35 < after / before <= 0.5


def test_a_wrong_rewrite_is_never_written(
    cli: Callable[..., Any], model: Path, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault, valid in every shape: its layers stay whole, and the report says why."""
    import onnxcompress_passes.channel_pass as module

    genuine = module.plan_cuts

    def wrong(view: Any, coupling: Any, removed: dict[str, Any], **more: Any) -> Any:
        if "conv2" in removed:
            removed = {**removed, "conv2": tuple(sorted((c + 1) % 32 for c in removed["conv2"]))}
        return genuine(view, coupling, removed, **more)

    monkeypatch.setattr(module, "plan_cuts", wrong)
    out = model.with_name("out.onnx")
    outcome = cli("compress", model, out, *HALF, "--data", samples)
    assert outcome.code == 0, outcome.err
    shapes = {name: values.shape for name, values in weights(onnx.load(out)).items()}
    assert shapes["conv1"] == (12, 3, 3, 3)
    assert shapes["conv2"] == (32, 12, 3, 3)
    assert shapes["point"] == (16, 32, 1, 1)
    report = json.loads(out.with_name("out.onnx.report.json").read_text())
    reasons = {refusal["node"]: refusal["reason"] for refusal in report["refusals"]}
    assert "differs from its reference" in reasons["conv2"]
    assert [choice["node"] for choice in report["plan"]["chosen"]] == ["conv1", "point"]


@pytest.mark.parametrize("extra", [(), ("--json",)])
def test_inspect(cli: Callable[..., Any], model: Path, extra: tuple[str, ...]) -> None:
    """What could be pruned stands beside each layer."""
    outcome = cli("inspect", model, *extra)
    assert (outcome.code, outcome.err) == (0, "")
    if extra:
        rows = {row["node"]: " ".join(row["passes"]) for row in json.loads(outcome.out)["layers"]}
        for node in ("conv1", "conv2", "point"):
            assert "prune" in rows[node]


def test_a_residual_network(cli: Callable[..., Any], tmp_path: Path) -> None:
    """Branches go where damage is cheap: here one adds nothing but a constant."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 3, 6, 7] x) => (float[N, 4] y) {
        [stem] a = Conv <kernel_shape = [1, 1]> (x, w0, b0) [r0] b = Relu (a)
        [c1] c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, w1) [r1] d = Relu (c)
        [c2] e = Conv <kernel_shape = [1, 1]> (d, w2, b2)
        [sum] f = Add (e, b) [r2] g = Relu (f)
        [pool] h = GlobalAveragePool (g) [flat] i = Flatten (h)
        [fc] y = Gemm <transB = 1> (i, w3) }"""
    network = onnx.parser.parse_model(text)
    generator = np.random.default_rng(6)
    shapes = {"w0": (16, 3, 1, 1), "b0": (16,), "w1": (16, 16, 3, 3), "w2": (16, 16, 1, 1),
              "b2": (16,), "w3": (4, 16)}  # fmt: skip
    for name, shape in shapes.items():
        scale = 1e-4 if name == "w2" else 1.0
        values = (scale * generator.standard_normal(shape)).astype(np.float32)
        network.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    source, data, out = (tmp_path / name for name in ("in.onnx", "data.npz", "out.onnx"))
    onnx.save(network, source)
    x = generator.standard_normal((40, 3, 6, 7)).astype(np.float32)
    np.savez(data, x=x)
    options = ("--pass", "prune", "--gate", "off", "--data", data, "--target", "macs=0.5",
               "--repair", "off")  # fmt: skip
    outcome = cli("compress", source, out, *options)
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "out.onnx.report.json").read_text())
    chosen = {choice["node"]: choice["setting"] for choice in report["plan"]["chosen"]}
    assert chosen["sum"]["kept"] == []
    names = {node.name for node in onnx.load(out).graph.node}
    assert not {"c1", "r1", "c2", "sum"} & names
    np.testing.assert_allclose(run(out, x), run(source, x), rtol=0, atol=0.05)
    again = tmp_path / "again.onnx"
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(report["plan"]))
    assert cli("compress", source, again, "--plan", plan).code == 0
    assert again.read_bytes() == out.read_bytes()
