"""Superblocks are found from the graph; what a narrower one keeps a wider one keeps, too."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts, analyse
from onnxcompress.errors import UsageError
from onnxcompress.graph.infer import with_value_info
from onnxcompress.plan.contract import NoCandidate, Refusal, Site
from onnxcompress.plan.options import collect
from onnxcompress.plan.registry import make_pass
from onnxcompress.rewrite.manager import rewrite
from tests.passes.scbp.resnets import resnet

PLAIN = """net (float[N, 3, 16, 16] x) => (float[N, 5] y) {
    [a] a = Conv <pads = [1, 1, 1, 1]> (x, wa) [ra] a1 = Relu (a)
    [b] b = Conv <pads = [1, 1, 1, 1]> (a1, wb) [rb] b1 = Relu (b)
    [p] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b1)
    [c] c = Conv <pads = [1, 1, 1, 1]> (p, wc) [rc] c1 = Relu (c)
    [d] d = Conv <pads = [1, 1, 1, 1]> (c1, wd) [rd] d1 = Relu (d)
    [g] g = GlobalAveragePool (d1) [f] f = Flatten (g) [y] y = Gemm <transB = 1> (f, wy) }"""
SHAPES = {
    "wa": (16, 3, 3, 3),
    "wb": (16, 16, 3, 3),
    "wc": (16, 16, 3, 3),
    "wd": (32, 16, 3, 3),
    "wy": (5, 32),
}


@pytest.fixture
def plain() -> Facts:
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + PLAIN)
    generator = np.random.default_rng(1)
    for name, shape in SHAPES.items():
        values = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return analyse(with_value_info(model), {"x": (2, 3, 16, 16)})


def names(facts: Facts, **options: Any) -> list[list[str]]:
    owner = make_pass("scbp", ranking="weight", round_to=1, **options)
    sites = collect(facts, [owner]).sites
    return [[name for name, _ in offers[0].setting.kept] for offers in sites]


def test_plain_networks_by_width_resolution_and_macs(plain: Facts) -> None:
    assert names(plain, segments="widths") == [["a", "b", "c"], ["d"]]
    assert names(plain, segments="resolutions") == [["a", "b"], ["c", "d"]]
    # b alone has 590 of 1,030 thousand multiplications.
    assert names(plain, segments=3) == [["a"], ["b"], ["c", "d"]]
    assert names(plain, segments=1) == [["a", "b", "c", "d"]]
    assert names(plain) == [["a", "b", "c"], ["d"]]


def test_residual_stages_with_what_is_inside_of_them() -> None:
    facts = analyse(resnet(18, size=32, width=8), {"x": (1, 3, 32, 32)})
    first, second, *_, last = names(facts, within="even")
    assert first == ["stem", "s1b0c1", "s1b1c1"]
    assert second == ["s2b0c1", "s2b0c2", "s2b1c1"]
    assert last == ["s4b0c1", "s4b0c2", "s4b1c1"]


def test_sums_of_branches_keep_their_width_unless_asked() -> None:
    facts = analyse(resnet(18, size=32, width=8), {"x": (1, 3, 32, 32)})
    for within, stem in (("inner", {}), ("even", {"stem": 4})):
        owner = make_pass("scbp", ranking="weight", ratios=0.5, round_to=1, within=within)
        options = collect(facts, [owner])
        kept = {name: len(rest) for name, rest in options.sites[0][-1].setting.kept}
        assert kept == stem | {"s1b0c1": 4, "s1b1c1": 4}
        told = {refusal.node: refusal.reason for refusal in options.refusals}
        assert ("within=even narrows it" in told.get("stem", "")) == (within == "inner")


def test_a_stream_that_stages_share_is_a_superblock_by_itself(kit: Any) -> None:
    """Shortcuts that pad with channels of zeros, as CIFAR's ResNets have them."""
    shapes = {"w0": (4, 3), "w1": (4, 4), "w2": (4, 4), "w3": (8, 4), "w4": (8, 8), "wy": (5, 8)}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w0"], ["a"], "stem"),
        onnx.helper.make_node("Conv", ["a", "w1"], ["b"], "in1"),
        onnx.helper.make_node("Relu", ["b"], ["b1"], "r1"),
        onnx.helper.make_node("Conv", ["b1", "w2"], ["c"], "out1"),
        onnx.helper.make_node("Add", ["c", "a"], ["d"], "sum1"),
        onnx.helper.make_node("Conv", ["d", "w3"], ["e"], "in2"),
        onnx.helper.make_node("Relu", ["e"], ["e1"], "r2"),
        onnx.helper.make_node("Conv", ["e1", "w4"], ["f"], "out2"),
        onnx.helper.make_node("Pad", ["d", "pads"], ["g"], "pad"),
        onnx.helper.make_node("Add", ["f", "g"], ["h"], "sum2"),
        onnx.helper.make_node("Conv", ["h", "wy"], ["y"], "head"),
    ]
    constants: dict[str, Any] = {
        name: np.ones((*shape, 1, 1), dtype=np.float32) for name, shape in shapes.items()
    }
    constants["pads"] = np.array([0, 2, 0, 0, 0, 2, 0, 0])
    model = kit.model(
        nodes, [kit.value("x", [1, 3, 4, 4])], [kit.value("y", [1, 5, 4, 4])], constants
    )
    facts = analyse(with_value_info(model), {"x": (1, 3, 4, 4)})
    assert names(facts, segments="widths", within="even") == [["stem"], ["in1"], ["in2"]]
    assert names(facts, segments="widths") == [["in1"], ["in2"]]


def test_superblocks_as_a_file_says(plain: Facts, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("early: [^a$, ^b$]\nlate: ^d$\n")
    owner = make_pass("scbp", ranking="weight", segments=str(path), round_to=1)
    options = collect(plain, [owner])
    assert [offers[0].setting.superblock for offers in options.sites] == ["early", "late"]
    assert Refusal("scbp", "c", "no superblock has it") in options.refusals


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("early: ^nothing$", "superblock 'early' matches no layer"),
        ("- a", "must map names"),
        ("early: ['(']", "superblock 'early'"),
        ("early: [1]", "must be a list of regular expressions"),
        ("a: b: c", "cannot be read"),
    ],
)
def test_files_that_say_nothing(plain: Facts, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        collect(plain, [make_pass("scbp", ranking="weight", segments=str(path))])


def test_kept_channels_are_nested_and_widths_rounded(plain: Facts) -> None:
    owner = make_pass("scbp", ranking="weight", ratios="0.9+0.6+0.4+0.1", segments="widths")
    first, second = collect(plain, [owner]).sites
    widths = [[len(kept) for _, kept in c.setting.kept] for c in first]
    # Multiples of 8 and never none: 0.9 of 16 is 16 again, and so are 0.4 and 0.1 what 0.6 is.
    assert widths == [[16, 16, 16], [8, 8, 8]]
    assert [len(c.setting.kept[0][1]) for c in second] == [32, 16, 8]
    for offers in (first, second):
        for wide, narrow in pairwise(offers):
            for (name, more), (same, less) in zip(
                wide.setting.kept, narrow.setting.kept, strict=True
            ):
                assert name == same
                assert set(less) <= set(more)


def test_ratio_one_gives_the_bytes_of_the_canonical_form(plain: Facts) -> None:
    owner = make_pass("scbp", ranking="weight")
    chosen = [offers[0] for offers in collect(plain, [owner]).sites]
    same = rewrite(plain.model, chosen, {"scbp": owner}, strict=True).model
    untouched = rewrite(plain.model, [], {}).model
    assert same.SerializeToString() == untouched.SerializeToString()


def test_widths_given_one_by_one(plain: Facts) -> None:
    owner = make_pass("scbp", ranking="weight", widths="1+0.5", round_to=1)
    options = collect(plain, [owner])
    ((candidate,),) = options.sites
    assert candidate.recommended
    assert (candidate.setting.superblock, candidate.setting.ratio) == ("2", 0.5)
    with pytest.raises(UsageError, match="has 3 ratios for 2 superblocks"):
        collect(plain, [make_pass("scbp", ranking="weight", widths="1+1+0.5")])


def test_removed_equals_zeroed(plain: Facts, kit: Any) -> None:
    owner = make_pass("scbp", ranking="weight", ratios=0.5, round_to=1)
    chosen = [offers[-1] for offers in collect(plain, [owner]).sites]
    small = rewrite(plain.model, chosen, {"scbp": owner}, strict=True).model
    zeroed = onnx.ModelProto()
    zeroed.CopyFrom(plain.model)
    gone = {
        name: sorted(set(range(SHAPES[f"w{name}"][0])) - set(kept))
        for candidate in chosen
        for name, kept in candidate.setting.kept
    }
    # None of these layers has a bias, so a filter of zeros makes a channel of zeros.
    for tensor in zeroed.graph.initializer:
        if tensor.name[1:] in gone:
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[gone[tensor.name[1:]]] = 0.0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    (expected,), (found,) = kit.run(zeroed, feeds), kit.run(small, feeds)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_beside_another_pass_that_removes_channels(plain: Facts, kit: Any) -> None:
    """One superblock by this pass and a group of another one by `prune`, in one rewrite."""
    passes = [
        make_pass("scbp", ranking="weight", ratios=0.5, round_to=1),
        make_pass("prune", channels=0.5),
    ]
    offers = {offers[0].site: offers for offers in collect(plain, passes).sites}
    late, early = offers[Site("scbp", "d")], offers[Site("prune", "a")]
    owners = {owner.name: owner for owner in passes}
    small = rewrite(plain.model, [late[-1], early[-1]], owners, strict=True).model
    shapes = {tensor.name: tuple(tensor.dims) for tensor in small.graph.initializer}
    convs = [node for node in small.graph.node if node.op_type == "Conv"]
    assert [shapes[node.input[1]][0] for node in convs] == [8, 16, 16, 16]
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    assert np.all(np.isfinite(kit.run(small, feeds)[0]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"segments": "stages"}, "segments='stages'"),
        ({"segments": 0}, "segments=0"),
        ({"ratios": "0.5+2"}, "ratios lie above 0"),
        ({"ratios": "a"}, "not of the form"),
        ({"ranking": "luck"}, "ranking='luck'"),
        ({"round_to": 0}, "round_to=0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_pass("scbp", **options)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"superblock": "1", "ratio": 0.5, "kept": []},
        {"superblock": "1", "ratio": 2, "kept": [["a", [0]]]},
        {"superblock": 1, "ratio": 0.5, "kept": [["a", [0]]]},
        {"superblock": "1", "ratio": 0.5, "kept": [["a", []]]},
        {"superblock": "1", "ratio": 0.5, "kept": [["a", [0]], ["a", [1]]]},
        {"superblock": "1", "ratio": 0.5, "kept": [["a", [0.5]]]},
    ],
)
def test_plan_entries_that_do_not_fit(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="does not fit pass 'scbp'"):
        make_pass("scbp").load_setting(values)


def test_a_superblock_with_nothing_to_give(plain: Facts) -> None:
    owner = make_pass("scbp", ranking="weight", ratios=0.9)
    site = next(s for s in owner.sites(plain) if not isinstance(s, Refusal))
    with pytest.raises(NoCandidate, match=r"all channels of superblock '1' stay at ratio 0\.9"):
        owner.candidates(site, plain)
