"""Which kernels stand for a layer, and that there is a picture of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from onnxcompress.errors import UsageError
from onnxcompress.kernels.compressibility import Compressibility
from onnxcompress.kernels.language import EdgeFilter, Entry, Scale, Sum
from onnxcompress.kernels.pictures import SHOWN, picture, shown
from onnxcompress.kernels.reading import WrittenLayer


def test_entries_by_how_often_they_are_taken() -> None:
    entries = {str(i): np.full((3, 3), float(i)) for i in range(3)}
    uses = [Scale(1.0, Entry("2"))] * 3 + [Scale(-2.0, Entry("0"))]
    found = shown(WrittenLayer("conv", (2, 2, 3, 3), tuple(uses), entries))
    assert [words for _, words in found] == ["75 %", "25 %"]
    assert [kernel[0, 0] for kernel, _ in found] == [2.0, 0.0]


def test_programs_by_their_energy_each_once() -> None:
    faint, strong = EdgeFilter((0.1, 0.0, -0.1)), EdgeFilter((2.0, 0.0, -2.0))
    layer = WrittenLayer("conv", (2, 2, 3, 3), (faint, strong, faint, Sum(())), {})
    found = shown(layer)
    assert len(found) == 3
    np.testing.assert_array_equal(found[0][0], [[2.0, 0.0, -2.0]] * 3)
    assert found[0][1].startswith("edge(")
    assert not found[-1][0].any()


def test_a_picture_has_a_row_per_layer_and_a_panel_of_curves() -> None:
    generator = np.random.default_rng(0)
    programs = tuple(EdgeFilter(tuple(row)) for row in generator.normal(size=(20, 3)).tolist())
    layer = WrittenLayer("first", (4, 5, 3, 3), programs, {})
    curve = Compressibility((0.001, 0.01, 0.1), (0.9, 0.6, 0.3), {})
    sizes = []
    for layers, curves in (([layer], {}), ([layer] * 3, {}), ([layer], {"second": curve})):
        image = Image.open(io.BytesIO(picture(layers, curves)))
        sizes.append(image.size)
        # Something is drawn, in more than one colour.
        colours = np.array(image.convert("RGB").resize((64, 64))).reshape(-1, 3)
        assert len(np.unique(colours, axis=0)) > 10
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] < sizes[1][1]
    assert len(shown(layer)) == SHOWN


def test_nothing_to_draw() -> None:
    with pytest.raises(UsageError, match="no 3x3 or 5x5 kernels"):
        picture([], {})
