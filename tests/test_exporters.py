"""What PyTorch's two exporters write goes through the whole engine, exactly."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress as oc
from onnxcompress.runtime import Execution, open_session

torch = pytest.importorskip("torch", reason="needs the extra finetune (PyTorch) to export networks")
pytest.importorskip("onnxscript", reason="needs onnxscript for PyTorch's exporter")


def network() -> Any:
    """Convolution, batch norm, residual, depthwise, squeeze-and-excite gate, flatten and dense."""
    nn = torch.nn
    torch.manual_seed(0)

    class Net(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24))
            self.body = nn.Sequential(
                nn.Conv2d(24, 24, 3, padding=1, bias=False),
                nn.BatchNorm2d(24),
                nn.ReLU(),
                nn.Conv2d(24, 24, 3, padding=1, groups=24),
                nn.BatchNorm2d(24),
            )
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 24, 1), nn.Sigmoid())
            self.up = nn.ConvTranspose2d(24, 16, 2, 2)
            self.norm = nn.BatchNorm2d(16)
            self.head = nn.Linear(16 * 16 * 16, 10)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.stem(x))
            y = self.body(x)
            x = torch.relu(x + y * self.gate(y))
            x = torch.relu(self.norm(self.up(x)))
            return self.head(torch.flatten(x, 1))

    net = Net().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return net


@pytest.fixture(scope="module", params=[False, True], ids=["torchscript", "dynamo"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("export") / "net.onnx"
    x = torch.randn(2, 3, 16, 16)
    options: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    if request.param:
        options["dynamic_shapes"] = {"x": {0: torch.export.Dim("N")}}
    else:
        options["dynamic_axes"] = {"image": {0: "N"}, "logits": {0: "N"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network(), (x,), str(path), dynamo=request.param, external_data=False, **options
        )
    return path


def run(model: onnx.ModelProto | Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with open_session(model, Execution(threads=1)) as session:
        return np.asarray(session.run(feeds)[0])


@pytest.mark.parametrize("batch", [1, 3])
def test_full_rank_is_exact_on_both_exports(exported: Path, batch: int) -> None:
    result = oc.compress(
        exported,
        passes=[oc.use("tucker2", rank="full"), oc.use("svd", rank="full")],
        gate=False,
        threads=1,
    )
    kinds = [node.op_type for node in result.model.graph.node]
    assert "BatchNormalization" not in kinds
    # Two dense 3x3 convolutions as triples, one 1x1 as a pair, the depthwise as it is.
    assert kinds.count("Conv") == 2 * 3 + 2 + 1
    x = np.random.default_rng(1).standard_normal((batch, 3, 16, 16)).astype(np.float32)
    expected, found = run(exported, {"image": x}), run(result.model, {"image": x})
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
