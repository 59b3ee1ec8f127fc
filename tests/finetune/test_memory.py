"""Steps that keep less: results computed again, and layers in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="no PyTorch: pip install 'onnxcompress[finetune]'")

from onnxcompress.errors import UsageError  # noqa: E402
from onnxcompress.finetune import memory  # noqa: E402
from onnxcompress.finetune.job import distil  # noqa: E402
from onnxcompress.finetune.network import Network  # noqa: E402
from onnxcompress.finetune.normalisation import normalise  # noqa: E402
from onnxcompress.finetune.precision import autocast  # noqa: E402
from onnxcompress.finetune.settings import Effort, Settings  # noqa: E402
from onnxcompress.progress import Silent  # noqa: E402

CPU = torch.device("cpu")
SHORT = {"effort": Effort(epochs=4), "batch": 16, "rate": 0.01}
# Of 25 steps, six are a part.
DEEP = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) {{
    {layers}
    [n] n = BatchNormalization (t12, positive_scale, shift, mean, positive_variance)
    y = Add (n, x) }}"""
DEEP_SHAPES = {
    **{f"w{at}": (3, 3, 3, 3) for at in range(12)},
    **{f"b{at}": (3,) for at in range(12)},
    **dict.fromkeys(("positive_scale", "shift", "mean", "positive_variance"), (3,)),
}


@pytest.fixture
def deep(fill: Any) -> onnx.ModelProto:
    layers = "\n".join(
        f"[c{at}] c{at} = Conv <pads = [1, 1, 1, 1]> ({f't{at}' if at else 'x'}, w{at}, b{at}) "
        f"[r{at}] t{at + 1} = Relu (c{at})"
        for at in range(12)
    )
    return fill(DEEP.format(layers=layers), DEEP_SHAPES, 1)  # type: ignore[no-any-return]


def gradients(network: Network, x: torch.Tensor, *, again: bool) -> dict[str, Any]:
    """Of one step, and the running statistics behind it."""
    network.recompute = again
    network.train()
    made = network({"x": x}, also=("t4",))
    torch.autograd.backward(made["y"].square().mean() + made["t4"].mean())
    return {
        **{name: value.grad for name, value in network.named_parameters()},
        **dict(network.named_buffers()),
    }


@pytest.mark.parametrize("norms", [False, True])
def test_the_same_gradients_and_statistics(deep: onnx.ModelProto, norms: bool) -> None:
    """A batch that is seen twice moves running statistics once."""
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for again in (False, True):
        network = Network(deep)
        if norms:
            assert normalise(network, [{"x": 0.5 * x + 0.1}]) == 12
        before = {name: value.clone() for name, value in network.named_buffers()}
        found.append(gradients(network, x, again=again))
        moved = [n for n, v in network.named_buffers() if not torch.equal(v, before[n])]
        # A mean and a variance of every normalisation.
        assert len(moved) == 2 * (1 + 12 * norms)
        assert all(norm.momentum == Network.momentum for norm, _, _ in network.inserted)
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert value is found[1][name] is None or torch.equal(value, found[1][name]), name


def test_less_is_kept(deep: onnx.ModelProto) -> None:
    """What autograd keeps of a step in front of its way back."""
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    kept: list[int] = []

    def pack(value: torch.Tensor) -> torch.Tensor:
        kept[-1] += value.numel() if value.grad_fn is not None else 0
        return value

    for again in (False, True):
        network = Network(deep).train()
        network.recompute = again
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            network({"x": x})
    assert kept[0] >= 24 * x.numel()
    assert kept[1] == 0


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_weights(
    teacher: Any, forgetful: Any, data: Any, norms: bool, precision: str
) -> None:
    made = [
        distil(
            forgetful(teacher),
            teacher,
            data,
            Settings(recompute=again, normalise=norms, precision=precision, **SHORT),
            Silent(),
        )
        for again in (False, True)
    ]
    assert made[0].improved
    assert made[0].model == made[1].model


@pytest.mark.parametrize("free", [1 << 40, 1 << 10, None])
def test_where_memory_is_short(
    teacher: Any, forgetful: Any, data: Any, monkeypatch: pytest.MonkeyPatch, free: int | None
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)
    told: list[str] = []

    class Told(Silent):
        def note(self, words: str) -> None:
            told.append(words)

    distil(forgetful(teacher), teacher, data, Settings(**SHORT), Told())
    assert ("memory is short" in " ".join(told)) == (free == 1 << 10)


def test_bytes_of_a_step(teacher: Any) -> None:
    shapes = Network(teacher).shapes({"x": torch.zeros(1, 3, 8, 8)})
    # Five tensors of 6 x 64 numbers; the pooled ones are 6 and 6, the answer is 4.
    assert memory.step_bytes(shapes, 10) == 4 * 10 * (5 * 6 * 64 + 6 + 6 + 4)


def test_free_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("_MEMINFO", "MemTotal:  99 kB\nMemAvailable:    7 kB\n"),
        ("_GROUP", "10000\n"),
        ("_GROUP_USED", "4000\n"),
    ):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert memory.free_bytes(CPU) == 6000
    (tmp_path / "_GROUP").write_text("max\n")
    assert memory.free_bytes(CPU) == 7 * 1024
    (tmp_path / "_MEMINFO").unlink()
    assert memory.free_bytes(CPU) is None


def test_half_precision(teacher: Any, forgetful: Any, data: Any) -> None:
    """Comes as close, by other weights."""
    made = {
        kind: distil(forgetful(teacher), teacher, data, Settings(precision=kind, **SHORT), Silent())
        for kind in ("float32", "bfloat16", "auto")
    }
    assert made["auto"].model == made["float32"].model != made["bfloat16"].model
    for found in made.values():
        assert found.after.distance < 0.5 * found.before.distance
    with autocast("bfloat16", CPU):
        seen = Network(teacher)({"x": torch.zeros(1, 3, 8, 8)}, also=("c",))
    assert seen["c"].dtype is torch.bfloat16


def test_unknown_precision() -> None:
    with pytest.raises(UsageError, match="precision 'float8' is none of auto, float32, bfloat16"):
        Settings(precision="float8")


def test_answers_stay_single(teacher: Any) -> None:
    """Only steps are in half precision: what is handed out is computed as ever."""
    network = Network(teacher)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    before = network.answers({"x": x})["y"]
    with autocast("auto", CPU):
        np.testing.assert_array_equal(network.answers({"x": x})["y"], before)
