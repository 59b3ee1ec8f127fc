"""Published networks, of several exporters, compute the same in canonical form."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.sizes import random_feeds, representative_sizes
from onnxcompress.load.canonical import canonicalise
from onnxcompress.load.source import read_source
from onnxcompress.verify.interface import interface_differences

pytestmark = pytest.mark.shared

# Sizes for the dimensions that are dynamic, small so that the test is quick.
SIZES = {"text_detection_ch_ppocrv3": (1, 3, 64, 96)}
MODELS = [
    "ic_resnet8_float",
    "kws_dscnn_float",
    "mnist_cntk",
    "mobilenet_v1_0.25_128_dq",
    "resnet20_cifar10",
    "resnet56_cifar10",
    "shufflenet-v2-12-int8",
    "shufflenet_v2_1.0_dq",
    "squeezenet1.1_fp16w_imagenet",
    "super_resolution_espcn",
    "text_detection_ch_ppocrv3",
    "ultraface_RFB_320",
    "yunet_n_320",
]


@pytest.mark.parametrize("name", MODELS)
def test_canonical_form_computes_the_same(kit, shared_folder, name):
    model = read_source(shared_folder / "models" / f"{name}.onnx").model
    before = model.SerializeToString()
    result = canonicalise(model).model
    assert model.SerializeToString() == before
    assert interface_differences(model, result) == []
    onnx.checker.check_model(result, full_check=True)
    names = [node.name for node in result.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)

    inputs = [i.name for i in result.graph.input]
    given = {inputs[0]: SIZES[name]} if name in SIZES else None
    feeds = random_feeds(model, representative_sizes(model, given), seed=1)
    for one, other in zip(kit.run(model, feeds), kit.run(result, feeds), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        # Folding rounds each weight once: 2^-24 relative, and some 50 layers deep the rounding
        # errors of both networks add up to a few hundred times that.
        scale = float(np.abs(one.astype(np.float64)).max())
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-4 * max(scale, 1e-3))
