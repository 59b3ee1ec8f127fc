"""Published networks: the interpreter against ONNX Runtime, and gradients against differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch", reason="no PyTorch: pip install 'onnxcompress[finetune]'")

from onnxcompress.analyse.sizes import random_feeds, representative_sizes  # noqa: E402
from onnxcompress.embedded import embedded  # noqa: E402
from onnxcompress.errors import ModelError  # noqa: E402
from onnxcompress.finetune.network import Network  # noqa: E402
from onnxcompress.finetune.objective import last_maker  # noqa: E402
from onnxcompress.finetune.weights import with_weights  # noqa: E402
from onnxcompress.load.source import read_source  # noqa: E402

SHARED = (
    "deeplabv3_mnv2_pascal_dq",
    "ic_resnet8_float",
    "kws_dscnn_float",
    "mnist_cntk",
    "mobilenet_v1_0.25_128_dq",
    "mobilenet_v2_1.0_224_dq",
    "resnet20_cifar10",
    "resnet56_cifar10",
    "shufflenet_v2_1.0_dq",
    "squeezenet1.1_fp16w_imagenet",
    "super_resolution_espcn",
    "text_detection_ch_ppocrv3",
    "ultraface_RFB_320",
    "yolox_nano_coco",
    "yunet_n_320",
)
EMBEDDED = ("digits_cnn", "lenet5_caffe", "lenet_300_100", "vgg_tiny")
SHAPES = {"text_detection_ch_ppocrv3": {"x": (1, 3, 96, 96)}}


def feeds_of(model: onnx.ModelProto, name: str, batch: int | None = None) -> dict[str, np.ndarray]:
    sizes = representative_sizes(model, SHAPES.get(name, {}), batch=batch, seen={})
    return random_feeds(model, sizes, seed=0)


def compare(model: onnx.ModelProto, name: str) -> None:
    """Every output; in front of a Sigmoid, which ONNX Runtime has to six digits behind the point.

    Of 15 networks the farthest is yolox_nano, 1.1e-5 away after 113 convolutions.
    """
    feeds = feeds_of(model, name)
    for output in list(model.graph.output):
        maker = last_maker(model, output.name)
        if maker is not None and maker.op_type == "Sigmoid":
            output.CopyFrom(
                onnx.helper.make_tensor_value_info(maker.input[0], onnx.TensorProto.FLOAT, None)
            )
    made = Network(model).eval().answers(feeds)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for output, wanted in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        found = made[output.name].astype(np.float64)
        assert made[output.name].dtype == wanted.dtype
        assert np.linalg.norm(found - wanted) < 2e-5 * np.linalg.norm(wanted), output.name


@pytest.mark.shared
@pytest.mark.parametrize("name", SHARED)
def test_published_networks(shared_folder: Path, name: str) -> None:
    compare(read_source(shared_folder / "models" / f"{name}.onnx").model, name)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_networks(name: str) -> None:
    compare(read_source(embedded(f"{name}.onnx")).model, name)


@pytest.mark.shared
def test_quantised_networks_are_refused(shared_folder: Path) -> None:
    model = read_source(shared_folder / "models" / "shufflenet-v2-12-int8.onnx").model
    with pytest.raises(ModelError, match=r"node '.+': operator QuantizeLinear is not known"):
        Network(model)


@pytest.mark.parametrize("name", EMBEDDED)
def test_gradients(name: str) -> None:
    """Along the gradient of every parameter, in float64, by central differences."""
    model = read_source(embedded(f"{name}.onnx")).model
    network = Network(model).eval().double()
    feeds = {k: torch.from_numpy(v).double() for k, v in feeds_of(model, name, batch=2).items()}
    output = network.outputs[0]
    towards = torch.randn(
        network(feeds)[output].shape, generator=torch.Generator().manual_seed(1)
    ).double()

    def loss() -> torch.Tensor:
        return (network(feeds)[output] * towards).sum()

    names = network.trained
    gradients = torch.autograd.grad(loss(), [network.parameter(n) for n in names])
    for one, gradient in zip(names, gradients, strict=True):
        norm = gradient.norm()
        if norm == 0:
            continue
        with torch.no_grad():
            parameter = network.parameter(one)
            begin = parameter.clone()
            sides = []
            for way in (1e-6, -1e-6):
                parameter.copy_(begin + way * gradient / norm)
                sides.append(float(loss()))
            parameter.copy_(begin)
        assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(float(norm), rel=1e-8), one


def test_weights_are_written_back() -> None:
    model = read_source(embedded("digits_cnn.onnx")).model
    network = Network(model)
    same = {name: network.value(name).detach().numpy() for name in network.trained}
    assert with_weights(model, same) == model
    name = network.trained[0]
    changed = with_weights(model, {name: same[name] + 1.0})
    (tensor,) = [t for t in changed.graph.initializer if t.name == name]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), same[name] + 1.0)
    assert list(changed.graph.node) == list(model.graph.node)


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.zeros(3), "is .*, not"), (None, "not finite")],
)
def test_weights_that_do_not_fit(value: np.ndarray | None, words: str) -> None:
    model = read_source(embedded("digits_cnn.onnx")).model
    network = Network(model)
    name = network.trained[0]
    given = np.full(network.value(name).shape, np.nan) if value is None else value
    with pytest.raises(ModelError, match=words):
        with_weights(model, {name: given})
    with pytest.raises(ModelError, match="no constant 'nothing'"):
        with_weights(model, {"nothing": np.zeros(1)})
