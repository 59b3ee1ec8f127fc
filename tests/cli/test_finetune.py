"""`onnxcompress finetune`, and `compress --finetune`: what they print, write and refuse."""

from __future__ import annotations

import builtins
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.embedded import embedded

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="no PyTorch: pip install 'onnxcompress[finetune]'",
)
TEACHER = embedded("digits_cnn.onnx")


@pytest.fixture
def digits(tmp_path: Path) -> list[str]:
    """A few digits to train on, and others to judge by."""
    with np.load(embedded("digits_train.npz")) as arrays:
        np.savez(tmp_path / "data.npz", x=arrays["x"][:240])
    with np.load(embedded("digits_test.npz")) as arrays:
        np.savez(tmp_path / "test.npz", **{name: arrays[name][:200] for name in arrays})
    return ["--data", str(tmp_path / "data.npz"), "--eval", str(tmp_path / "test.npz")]


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """The teacher with noise on its weights."""
    model = onnx.load(TEACHER)
    generator = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor)
            noise = 0.8 * values.std() * generator.standard_normal(values.shape)
            new = (values + noise).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(new, tensor.name))
    onnx.save(model, tmp_path / "student.onnx")
    return tmp_path / "student.onnx"


@needs_torch
class TestFinetune:
    def test_a_better_model(
        self, cli: Callable[..., Any], student: Path, digits: list[str], tmp_path: Path
    ) -> None:
        out = tmp_path / "out.onnx"
        options = ["--teacher", TEACHER, *digits, "--for", "3e", "--threads", "1"]
        outcome = cli("finetune", student, out, *options)
        assert outcome.code == 0, outcome.err
        report = json.loads((tmp_path / "out.onnx.report.json").read_text())
        before, after = (report[when]["metric"] for when in ("before", "after"))
        assert after["name"] == "top1"
        assert after["n"] == 200
        assert after["value"] > before["value"] + 0.05
        assert report["finetune"]["distance"][1] < report["finetune"]["distance"][0]
        assert len(report["finetune"]["epochs"]) == 3
        assert f"{100 * after['value']:.2f} % after" in outcome.out
        assert outcome.err.count("epoch ") == 3
        onnx.checker.check_model(onnx.load(out), full_check=True)
        assert list(onnx.load(out).graph.node) == list(onnx.load(student).graph.node)

    def test_memory_and_precision(
        self, cli: Callable[..., Any], student: Path, digits: list[str], tmp_path: Path
    ) -> None:
        """Computing again changes nothing, half precision does."""
        made = []
        for number, options in enumerate(
            (["--keep"], ["--recompute"], ["--recompute", "--precision", "bfloat16"])
        ):
            out = tmp_path / f"out{number}.onnx"
            given = ["--teacher", TEACHER, *digits, "--for", "1e", "--threads", "1", *options]
            outcome = cli("finetune", student, out, *given)
            assert outcome.code == 0, outcome.err
            made.append(out.read_bytes())
        assert made[0] == made[1] != made[2]

    def test_losses_and_steps(
        self, cli: Callable[..., Any], student: Path, digits: list[str], tmp_path: Path
    ) -> None:
        """What is asked for is what trains, and is reported."""
        (name,) = (output.name for output in onnx.load(student).graph.output)
        given = ["--teacher", TEACHER, *digits, "--for", "1e", "--threads", "1"]
        made, taken = [], []
        for number, options in enumerate(
            ([], ["--loss", "error"], ["--loss", f"{name}=cosine", "--batch", "16"])
        ):
            out = tmp_path / f"out{number}.onnx"
            outcome = cli("finetune", student, out, *given, *options)
            assert outcome.code == 0, outcome.err
            report = json.loads(Path(f"{out}.report.json").read_text())["finetune"]
            made.append(out.read_bytes())
            taken.append((report["batch"], report["rate"]))
        assert len(set(made)) == 3
        assert taken == [(64, 4e-3), (64, 4e-3), (16, pytest.approx(4e-3 / math.sqrt(2)))]

    def test_labels_of_no_class_scores(
        self, cli: Callable[..., Any], student: Path, digits: list[str], tmp_path: Path
    ) -> None:
        options = ["--data", digits[3], "--loss", "error", "--labels", "0.5"]
        outcome = cli("finetune", student, tmp_path / "out.onnx", "--teacher", TEACHER, *options)
        outcome.refused(2, "labels can have no share")

    def test_nothing_gained(
        self, cli: Callable[..., Any], digits: list[str], tmp_path: Path
    ) -> None:
        out = tmp_path / "out.onnx"
        outcome = cli("finetune", TEACHER, out, "--teacher", TEACHER, *digits, "--for", "1e")
        assert outcome.code == 1
        assert "nothing was gained" in outcome.err
        assert not out.exists()
        assert json.loads((tmp_path / "out.onnx.report.json").read_text())["finetune"]["epochs"]

    def test_a_teacher_of_something_else(
        self, cli: Callable[..., Any], student: Path, digits: list[str], tmp_path: Path
    ) -> None:
        other = embedded("lenet5_caffe.onnx")
        outcome = cli("finetune", student, tmp_path / "out.onnx", "--teacher", other, *digits)
        assert outcome.code == 3
        assert "the teacher's" in outcome.err

    def test_an_operator_that_is_not_known(
        self, cli: Callable[..., Any], digits: list[str], tmp_path: Path
    ) -> None:
        model = onnx.load(TEACHER)
        (output,) = model.graph.output
        last = next(n for n in model.graph.node if output.name in n.output)
        last.output[0] = "scores"
        model.graph.node.append(
            onnx.helper.make_node("Hardmax", ["scores"], [output.name], name="last")
        )
        onnx.save(model, tmp_path / "odd.onnx")
        outcome = cli(
            *("finetune", tmp_path / "odd.onnx", tmp_path / "out.onnx", "--teacher", TEACHER),
            *digits,
        )
        outcome.refused(3, "node 'last'", "Hardmax")

    def test_inside_of_a_job(
        self, cli: Callable[..., Any], digits: list[str], tmp_path: Path
    ) -> None:
        """With a target, what is lost counts after training only."""
        out = tmp_path / "out.onnx"
        options = ["--pass", "prune", "--target", "macs=0.3", "--repair", "off", *digits]
        options += ["--threads", "1", "--max-drop", "2"]
        refused = cli("compress", TEACHER, out, *options)
        assert refused.code == 1
        outcome = cli("compress", TEACHER, out, *options, "--finetune", "6e")
        assert outcome.code == 0, outcome.err
        report = json.loads((tmp_path / "out.onnx.report.json").read_text())
        assert report["finetune"]["improved"]
        assert report["drop"]["points"] <= 2
        assert report["remaining"]["macs"] <= 0.3
        assert report["after"]["file_bytes"] == out.stat().st_size

    def test_in_stages(self, cli: Callable[..., Any], digits: list[str], tmp_path: Path) -> None:
        out, run = tmp_path / "out.onnx", tmp_path / "run"
        options = ["--pass", "prune", "--target", "macs=0.3", "--repair", "off", *digits]
        options += ["--threads", "1", "--max-drop", "100", "--run", str(run)]
        outcome = cli("compress", TEACHER, out, *options, "--finetune", "2e", "--stages", "2")
        assert outcome.code == 0, outcome.err
        assert "stage 1 of 2: macs 0.548" in outcome.err
        report = json.loads((tmp_path / "out.onnx.report.json").read_text())
        (first,) = report["stages"]
        assert f"stage 1: macs {first['remaining']['macs']:.3f}, " in outcome.out
        assert report["remaining"]["macs"] <= 0.3 < first["remaining"]["macs"] <= 0.548
        # A plan of the last stage alone would not fit the original.
        assert not (run / "plan.json").exists()
        refused = cli("compress", TEACHER, out, *options, "--stages", "2", "--dry-run")
        refused.refused(2, "--stages makes no single plan")

    def test_no_training_where_a_target_is_missed(
        self, cli: Callable[..., Any], digits: list[str], tmp_path: Path
    ) -> None:
        """Other weights would not make the file smaller."""
        options = ["--pass", "svd", "--target", "params=0.001", *digits, "--threads", "1"]
        outcome = cli("compress", TEACHER, tmp_path / "out.onnx", *options, "--finetune", "2e")
        outcome.refused(1, "params is at", "best attempt")
        report = json.loads((tmp_path / "out.onnx.report.json").read_text())
        assert report["finetune"] is None

    def test_without_a_target(
        self, cli: Callable[..., Any], digits: list[str], tmp_path: Path
    ) -> None:
        """The plan keeps to the bound by itself; training adds to that."""
        out = tmp_path / "out.onnx"
        options = ["--pass", "svd", "--gate", "off", *digits, "--threads", "1"]
        outcome = cli("compress", TEACHER, out, *options, "--finetune", "2e")
        assert outcome.code == 0, outcome.err
        report = json.loads((tmp_path / "out.onnx.report.json").read_text())
        assert len(report["finetune"]["epochs"]) == 2
        assert "fine-tun" in outcome.out
        assert report["drop"]["points"] <= 1

    @pytest.mark.parametrize("precision", ["fp16", "int8"])
    def test_then_another_precision(
        self, cli: Callable[..., Any], digits: list[str], tmp_path: Path, precision: str
    ) -> None:
        """What is trained is converted, and that is what is judged and written."""
        out = tmp_path / "out.onnx"
        options = ["--pass", "prune", "--target", "macs=0.4", *digits, "--threads", "1"]
        options += ["--max-drop", "5", "--finetune", "6e", "--repair", "off", "--then", precision]
        outcome = cli("compress", TEACHER, out, *options)
        assert outcome.code == 0, outcome.err
        report = json.loads((tmp_path / "out.onnx.report.json").read_text())
        assert report["finetune"]["improved"]
        assert report["then"]["precision"] == precision
        assert report["after"]["file_bytes"] == out.stat().st_size
        onnx.checker.check_model(onnx.load(out), full_check=True)

    def test_half_precision(
        self, cli: Callable[..., Any], digits: list[str], tmp_path: Path
    ) -> None:
        """Trained in single precision, and written back in half."""
        half, out = tmp_path / "half.onnx", tmp_path / "out.onnx"
        options = ["--pass", "prune", "--target", "macs=0.3", "--repair", "off", *digits]
        options += ["--threads", "1", "--max-drop", "100", "--then", "fp16"]
        assert cli("compress", TEACHER, half, *options).code == 0
        options = ["--teacher", TEACHER, *digits, "--for", "3e", "--threads", "1"]
        outcome = cli("finetune", half, out, *options)
        assert outcome.code == 0, outcome.err
        kinds = [[t.data_type for t in onnx.load(p).graph.initializer] for p in (half, out)]
        assert kinds[0] == kinds[1]
        assert onnx.TensorProto.FLOAT16 in kinds[1]

    def test_through_pipes(self, student: Path, digits: list[str]) -> None:
        command = [sys.executable, "-m", "onnxcompress", "finetune", "-", "-", "--for", "1e", "-q"]
        command += ["--teacher", str(TEACHER), *digits, "--threads", "1", "--rate", "0.001"]
        done = subprocess.run(command, input=student.read_bytes(), capture_output=True, check=True)
        onnx.checker.check_model(onnx.load_from_string(done.stdout), full_check=True)
        assert b"after, teacher" in done.stderr

    def test_killed_inside_of_a_job(
        self,
        cli: Callable[..., Any],
        digits: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """With --run the job goes on behind the last epoch, and ends with the same bytes."""
        options = ["--pass", "prune", "--target", "macs=0.4", *digits, "--threads", "1"]
        options += ["--max-drop", "5", "--finetune", "3e", "--repair", "off"]
        whole, again = tmp_path / "whole.onnx", tmp_path / "again.onnx"
        assert cli("compress", TEACHER, whole, *options).code == 0
        options += ["--run", tmp_path / "run"]
        from onnxcompress.finetune.checkpoint import Checkpoint

        written = Checkpoint.write

        def killed(self: Checkpoint, values: dict[str, Any]) -> None:
            written(self, values)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "write", killed)
            assert cli("compress", TEACHER, again, *options).code == 130
        outcome = cli("compress", TEACHER, again, *options)
        assert outcome.code == 0, outcome.err
        assert "going on behind epoch 1" in outcome.err
        assert again.read_bytes() == whole.read_bytes()


def test_without_pytorch(
    cli: Callable[..., Any],
    student: Path,
    digits: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genuine = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "torch":
            raise ImportError(name)
        return genuine(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    out = tmp_path / "out.onnx"
    outcome = cli("finetune", student, out, "--teacher", TEACHER, *digits)
    outcome.refused(2, "needs PyTorch", "onnxcompress[finetune]")
    outcome = cli("compress", TEACHER, out, "--finetune", "1e", "--target", "macs=0.5", *digits)
    outcome.refused(2, "needs PyTorch")


@needs_torch
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--for", "3"], "neither a number of epochs"),
        (["--augment", "turn"], "'turn' is none of"),
        (["--labels", "2"], "labels must lie between"),
        (["--loss", "angle"], "none of auto, cosine, error"),
        (["--loss", "elsewhere=cosine"], "no output 'elsewhere'"),
    ],
)
def test_options_that_make_no_sense(
    cli: Callable[..., Any],
    student: Path,
    digits: list[str],
    tmp_path: Path,
    options: list[str],
    words: str,
) -> None:
    out = tmp_path / "out.onnx"
    cli("finetune", student, out, "--teacher", TEACHER, *digits, *options).refused(2, words)


def test_data_is_needed(cli: Callable[..., Any], tmp_path: Path) -> None:
    outcome = cli("compress", TEACHER, tmp_path / "out.onnx", "--finetune", "1e")
    outcome.refused(2, "--finetune trains on the inputs of --data")
    outcome = cli("compress", TEACHER, tmp_path / "out.onnx", "--finetune", "soon")
    outcome.refused(2, "neither a number of epochs")
