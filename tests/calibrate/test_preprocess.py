"""Parsing of --preprocess: every key, every spelling, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxcompress.calibrate.preprocess import Preprocess
from onnxcompress.calibrate.preprocess_text import parse_preprocess
from onnxcompress.errors import UsageError

KEYS = ["layout", "color", "resize", "crop", "scale", "mean", "std", "label_offset"]


def test_nothing_given_is_nothing() -> None:
    assert parse_preprocess(None) is None


def test_every_key_is_read_from_text() -> None:
    parsed = parse_preprocess(
        "layout=nhwc, color=bgr,resize=256,crop=[224,192],scale=1/255,"
        "mean=[.485,.456,.406],std=[.229,0.224,.225],label_offset=-1"
    )
    assert parsed == Preprocess(
        layout="nhwc",
        color="bgr",
        resize=256,
        crop=(224, 192),
        scale=1 / 255,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        label_offset=-1,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("crop=7", Preprocess(crop=(7, 7))),
        ("resize=[5,6]", Preprocess(resize=(5, 6))),
        ("mean=127.5,std=127.5", Preprocess(mean=(127.5,), std=(127.5,))),
        ("mean=[104,117,123]", Preprocess(mean=(104.0, 117.0, 123.0))),
        ("mean=[1/2,1/4,1/8]", Preprocess(mean=(0.5, 0.25, 0.125))),
        ("scale=1e-2", Preprocess(scale=0.01)),  # YAML 1.1 reads 1e-2 as a string
        ("scale=2", Preprocess(scale=2.0)),
        ("layout=NHWC,color=RGB", Preprocess(layout="nhwc", color="rgb")),
    ],
)
def test_values_come_in_several_spellings(text: str, expected: Preprocess) -> None:
    assert parse_preprocess(text) == expected


def test_yaml_file_means_the_same_as_text(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "layout: nhwc\ncolor: gray\nresize: [9, 8]\ncrop: 5\nscale: 1/255\nmean: 0.5\n"
        "std: [0.25]\nlabel_offset: 1\n"
    )
    assert parse_preprocess(str(path)) == parse_preprocess(
        "layout=nhwc,color=gray,resize=[9,8],crop=5,scale=1/255,mean=.5,std=.25,label_offset=1"
    )


@pytest.mark.parametrize(
    "text",
    [
        "colour=rgb",
        "layout=nhcw",
        "color=hsv",
        "color=",
        "resize=0",
        "resize=2.5",
        "resize=true",
        "resize=[1,2,3]",
        "resize=[4,-4]",
        "crop=0",
        "crop=[3]",
        "crop=a",
        "crop=[1,0]",
        "scale=0",
        "scale=1/0",
        "scale=nan",
        "scale=[1,2]",
        "scale=1/255/2",
        "scale=true",
        "mean=inf",
        "mean=[1,2]",
        "mean=[]",
        "mean=[[1],[2],[3]]",
        "std=0",
        "std=-1",
        "std=inf",
        "std=[1,1,0]",
        "color=gray,mean=[1,2,3]",
        "color=gray,std=[1,2,3]",
        "label_offset=1.5",
        "label_offset=true",
        "scale=1,scale=2",
        "scale",
        "",
        "mean=[1,2,3",
        "mean=1,2,3]",
        "mean={",
        "mean=" + "[" * 5000,
        "mean=:\n{layout",
        "scale=1" + "0" * 5000,
        "scale=2001-99-99",
    ],
)
def test_bad_text_is_wrong_usage_and_lists_the_keys(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_preprocess(text)
    message = str(caught.value)
    assert message.startswith("--preprocess: ")
    assert message.endswith("the accepted keys are " + ", ".join(KEYS))
    assert "\n" not in message


def test_bad_value_names_key_and_value() -> None:
    with pytest.raises(UsageError, match=r"bad value for 'crop': 'wide'"):
        parse_preprocess("scale=1,crop=wide")
    with pytest.raises(UsageError, match=r"unknown key 'centre'"):
        parse_preprocess("scale=1,centre=3")


@pytest.mark.parametrize(
    "content", [b"- 1\n- 2\n", b"scale: [1\n", b"\xff\xfe\x00", b"", b"1: 2\n", b"? [a]\n: 1\n"]
)
def test_bad_file_is_wrong_usage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.yml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="accepted keys") as caught:
        parse_preprocess(str(path))
    assert "\n" not in str(caught.value)


def test_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*gone\.yaml"):
        parse_preprocess(str(tmp_path / "gone.yaml"))


def test_settings_as_json() -> None:
    settings = Preprocess(color="bgr", resize=(5, 6), crop=(3, 4), mean=(1.0, 2.0, 3.0))
    assert json.loads(json.dumps(settings.to_dict())) == {
        "layout": "nchw",
        "color": "bgr",
        "resize": [5, 6],
        "crop": [3, 4],
        "scale": 1.0,
        "mean": [1.0, 2.0, 3.0],
        "std": [1.0],
        "label_offset": 0,
    }
