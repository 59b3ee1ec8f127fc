from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxcompress
from onnxcompress.embedded import DEFAULT_ROOTS, embedded, embedded_names, search_roots
from onnxcompress.errors import ModelError, UsageError

SHIPPED = (
    "digits_cnn.onnx",
    "digits_test.npz",
    "digits_train.npz",
    "lenet5_caffe.onnx",
    "lenet_300_100.onnx",
    "vgg_tiny.onnx",
)
# Each network: the shape of its images, and its convolutions in order.
NETWORKS = {
    "digits_cnn.onnx": ((1, 8, 8), ["conv1", "conv2", "conv3", "conv4", "conv5"]),
    "lenet5_caffe.onnx": ((1, 28, 28), ["conv1", "conv2"]),
    "lenet_300_100.onnx": ((1, 28, 28), []),
    "vgg_tiny.onnx": ((1, 28, 28), ["conv1", "conv2", "conv3"]),
}
# Of different lengths, with a byte that text mode would convert.
FILES = {"a.onnx": b"\x00weights\r\n\xff", "b.npz": b"PK\x03\x04"}


def plant(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    entries = {}
    for name, content in files.items():
        (folder / name).write_bytes(content)
        entries[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps({"files": entries}), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return plant(tmp_path / "models", FILES)


def manifest_entry(name: str) -> dict[str, Any]:
    manifest = embedded(name).parent / "manifest.json"
    entry: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))["files"][name]
    return entry


def data(name: str) -> dict[str, np.ndarray]:
    with np.load(embedded(name), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


# ---------------------------------------------------------------- finding and checking


@pytest.mark.parametrize("place", ["onnxcompress/_models", "models"], ids=["wheel", "checkout"])
@pytest.mark.parametrize("name", sorted(FILES))
def test_found_in_both_layouts(tmp_path: Path, place: str, name: str) -> None:
    plant(tmp_path / place, FILES)
    path = embedded(name, roots=search_roots(tmp_path / "onnxcompress"))
    assert path == tmp_path / place / name
    assert path.read_bytes() == FILES[name]


def test_an_installed_package_ignores_the_models_folder_of_someone_else(tmp_path: Path) -> None:
    plant(tmp_path / "models", {"a.onnx": b"someone else's", "other.onnx": b"other"})
    inside = plant(tmp_path / "onnxcompress" / "_models", FILES)
    roots = search_roots(tmp_path / "onnxcompress")
    assert embedded("a.onnx", roots=roots) == inside / "a.onnx"
    with pytest.raises(UsageError):
        embedded("other.onnx", roots=roots)


def test_a_folder_without_a_manifest_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "onnxcompress" / "_models").mkdir(parents=True)
    outside = plant(tmp_path / "models", FILES)
    assert embedded("b.npz", roots=search_roots(tmp_path / "onnxcompress")) == outside / "b.npz"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),  # same length
        lambda content: content[:-1],
        lambda content: content + b"\n",
        lambda content: content.replace(b"\r\n", b"\n"),
        lambda _: b"",
    ],
    ids=["bit flip", "truncated", "longer", "line endings", "empty"],
)
def test_a_corrupt_file_is_named(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    path = folder / "a.onnx"
    path.write_bytes(damage(FILES["a.onnx"]))
    with pytest.raises(ModelError, match="not the one that was shipped") as caught:
        embedded("a.onnx", roots=[folder])
    message = str(caught.value)
    assert str(path) in message
    assert "install onnxcompress again" in message
    assert "\n" not in message
    # The other file is still good.
    assert embedded("b.npz", roots=[folder]) == folder / "b.npz"


@pytest.mark.parametrize("become", ["nothing", "folder"])
def test_a_missing_file_is_named(folder: Path, become: str) -> None:
    path = folder / "b.npz"
    path.unlink()
    if become == "folder":
        path.mkdir()
    with pytest.raises(ModelError, match="cannot be read") as caught:
        embedded("b.npz", roots=[folder])
    assert str(path) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("name", ["c.onnx", "", "manifest.json", "../models/a.onnx", "A.ONNX"])
def test_an_unknown_name_lists_the_known_ones(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"there are: a\.onnx, b\.npz$") as caught:
        embedded(name, roots=[folder])
    assert repr(name) in str(caught.value)


def test_no_manifest_anywhere(tmp_path: Path) -> None:
    roots = search_roots(tmp_path / "onnxcompress")
    with pytest.raises(ModelError, match=r"no manifest\.json") as caught:
        embedded("a.onnx", roots=roots)
    assert all(str(root) in str(caught.value) for root in roots)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"files": ["a.onnx"]}',
        b'{"files": {"a.onnx": 1}}',
        b'{"files": {"a.onnx": {}}}',
    ],
)
def test_a_broken_manifest_is_named(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ModelError, match="list of embedded files") as caught:
        embedded("a.onnx", roots=[folder])
    assert str(folder / "manifest.json") in str(caught.value)
    with pytest.raises(ModelError, match="list of embedded files"):
        embedded_names(roots=[folder])


# ---------------------------------------------------------------- what is shipped


def test_the_default_roots_surround_the_package() -> None:
    package = Path(onnxcompress.__file__).resolve().parent
    assert (package / "_models", package.parent / "models") == DEFAULT_ROOTS


def test_everything_shipped_is_listed_and_intact() -> None:
    assert embedded_names() == SHIPPED
    for name in SHIPPED:
        content = embedded(name).read_bytes()
        entry = manifest_entry(name)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["bytes"] == len(content)
        assert entry["description"]


def test_the_data_is_in_the_form_the_command_line_expects() -> None:
    train, test = data("digits_train.npz"), data("digits_test.npz")
    assert sorted(train) == ["x"]
    assert sorted(test) == ["x", "y"]
    assert train["x"].shape == (1000, 1, 8, 8)
    assert test["x"].shape == (797, 1, 8, 8)
    assert test["y"].shape == (797,)
    assert train["x"].dtype == test["x"].dtype == np.float32
    assert test["y"].dtype == np.int64


def test_the_data_is_scikit_learns_digits() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    labels = {
        (image / 16).astype(np.float32).tobytes(): int(label)
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    assert len(labels) == 1797  # no two images alike, so that an image determines its label
    train, test = data("digits_train.npz"), data("digits_test.npz")
    train_images = [image.tobytes() for image in train["x"]]
    test_images = [image.tobytes() for image in test["x"]]
    assert set(train_images) | set(test_images) == set(labels)
    assert not set(train_images) & set(test_images)
    np.testing.assert_array_equal(test["y"], [labels[image] for image in test_images])
    # Stratified: no class is off its share of 1000/1797 by one image or more.
    found = np.bincount([labels[image] for image in train_images], minlength=10)
    share = np.bincount(digits.target, minlength=10) * (1000 / 1797)
    assert (np.abs(found - share) < 1).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_model_is_one_valid_file_with_the_promised_interface(name: str) -> None:
    path, (image, convolutions) = embedded(name), NETWORKS[name]
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)

    def signature(values: Iterable[onnx.ValueInfoProto]) -> list[tuple[str, int, list[Any]]]:
        return [
            (
                value.name,
                value.type.tensor_type.elem_type,
                [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
            )
            for value in values
        ]

    assert signature(model.graph.input) == [("image", onnx.TensorProto.FLOAT, ["N", *image])]
    assert signature(model.graph.output) == [("logits", onnx.TensorProto.FLOAT, ["N", 10])]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [node.name for node in model.graph.node if node.op_type == "Conv"] == convolutions


@pytest.mark.parametrize("name", NETWORKS)
def test_the_model_does_not_tell_whose_machine_it_was_made_on(name: str) -> None:
    content = embedded(name).read_bytes()
    assert b"site-packages" not in content
    assert b"File " not in content


@pytest.mark.parametrize("batch", [1, 797])
def test_the_accuracy_on_the_card_is_reproduced(batch: int) -> None:
    test, entry = data("digits_test.npz"), manifest_entry("digits_cnn.onnx")
    session = onnxruntime.InferenceSession(
        embedded("digits_cnn.onnx"), providers=["CPUExecutionProvider"]
    )
    logits = np.concatenate(
        [
            session.run(None, {"image": test["x"][first : first + batch]})[0]
            for first in range(0, len(test["x"]), batch)
        ]
    )
    correct = int((logits.argmax(axis=1) == test["y"]).sum())
    assert entry["test_total"] == len(test["y"])
    # Another CPU sums in another order. Its logits differ by some 1e-5 where the closest call among
    # these images is decided by 0.28, so not even one image should tip; one is allowed for kernels
    # of lower precision (bfloat16 instructions, for one, keep three digits).
    assert abs(correct - entry["test_correct"]) <= 1


@pytest.mark.parametrize("name", NETWORKS)
def test_the_card_agrees_with_the_manifest(name: str) -> None:
    entry = manifest_entry(name)
    card = embedded(name).with_suffix(".md").read_text(encoding="utf-8")
    correct, total = entry["test_correct"], entry["test_total"]
    # Wilson's interval in closed form: E. B. Wilson, JASA 22 (1927) 209-212.
    z, p = 1.959963984540054, correct / total
    middle = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * np.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    initializers = onnx.load(embedded(name)).graph.initializer
    weights = [t for t in initializers if t.data_type == onnx.TensorProto.FLOAT]
    parameters = sum(onnx.numpy_helper.to_array(tensor).size for tensor in weights)
    for phrase in (
        f"`{entry['sha256']}`",
        f"{entry['bytes']:,} bytes",
        f"{correct:,} of {total:,}",
        f"{p:.2%}",
        f"{middle - half:.2%} to {middle + half:.2%}",
        f"| {parameters:,} |",
    ):
        assert phrase in card, phrase
