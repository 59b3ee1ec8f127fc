"""The shape of the code: who may import whom, and what only one place may do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "onnxcompress"
PASSES = ROOT / "passes" / "onnxcompress_passes"

LAYERS = [
    {"errors"},
    {"numerics", "graph", "progress", "embedded"},
    {"kernels"},
    {"placement"},
    {"runtime"},
    {"latency"},
    # The stages, in the order in which they run.
    {"load"},
    {"analyse"},
    {"gradients"},
    {"calibrate"},
    {"plan"},
    {"rewrite"},
    {"verify"},
    {"report"},
    {"finetune"},
    {"config"},
    {"journal"},
    {"trial"},
    {"groundwork"},
    {"preparation"},
    {"remainder", "repairs", "margins"},
    {"branch_order", "workbench"},
    {"targeting"},
    {"planning"},
    {"attempt", "retraining"},
    {"pipeline"},
    {"stages"},
    {"search", "study"},
    {"api"},
    {"derivation", "distillation"},
    {"cli", "testing"},
    {"__main__"},
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
LAZY = "__init__"
"""The package itself names everything and imports nothing until it is asked."""

EDITING = {"graph/editor.py", "graph/surgeon.py"}
GRAPH_VERBS = {"append", "extend", "insert", "pop", "clear", "remove", "update", "setdefault"}
GRAPH_FIELDS = {"inputs", "outputs", "attrs", "nodes", "values"}


def _sources(folder: Path) -> dict[str, ast.Module]:
    paths = sorted(folder.rglob("*.py"))
    assert paths
    return {str(p.relative_to(folder).as_posix()): ast.parse(p.read_text("utf-8")) for p in paths}


@pytest.fixture(scope="module")
def engine():
    return _sources(ENGINE)


@pytest.fixture(scope="module")
def passes():
    return _sources(PASSES)


def _imported(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported anywhere in a file, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imports(tree: ast.Module, package: str) -> bool:
    return any(name.split(".")[0] == package for name in _imported(tree))


def _part(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def _parts_read(tree: ast.Module) -> set[str]:
    """The parts of the engine that a file imports."""
    names = [n.split(".") for n in _imported(tree) if n.split(".")[0] == "onnxcompress"]
    return {n[1] for n in names if len(n) > 1 and n[1] in RANK}


def _backward(path: str, tree: ast.Module) -> set[str]:
    """Parts that a file imports although they stand beside it or above it."""
    own = _part(path)
    return {p for p in _parts_read(tree) - {own} if RANK[p] >= RANK[own]}


def test_every_part_has_its_place(engine):
    unknown = {_part(path) for path in engine} - set(RANK) - {LAZY}
    assert unknown == set(), "give the new part its place in LAYERS"


def test_imports_go_one_way(engine):
    wrong = {path: _backward(path, tree) for path, tree in engine.items() if _part(path) != LAZY}
    assert {path: parts for path, parts in wrong.items() if parts} == {}


def test_every_import_of_the_engine_is_of_a_known_part(engine):
    """What the rule above cannot place it must not overlook."""
    for path, tree in engine.items():
        names = {n for n in _imported(tree) if n.split(".")[0] == "onnxcompress"}
        strange = {n for n in names if len(n.split(".")) > 1 and n.split(".")[1] not in RANK}
        assert strange <= {"onnxcompress.__version__"}, path


def test_numerics_import_nothing_of_ours_but_errors(engine):
    for path, tree in engine.items():
        if _part(path) == "numerics":
            own = {n for n in _imported(tree) if n.startswith("onnxcompress")}
            foreign = {n for n in own if not n.startswith("onnxcompress.numerics")}
            assert all(n.startswith("onnxcompress.errors") for n in foreign), path
            assert not _imports(tree, "onnx"), path


def test_modules_do_not_import_each_other_in_circles(engine):
    modules = {path.removesuffix(".py").replace("/", "."): tree for path, tree in engine.items()}
    graph = {}
    for name, tree in modules.items():
        read = {n.removeprefix("onnxcompress.") for n in _imported(tree)}
        graph[name] = {n for n in read if n in modules and n != name}
    del graph[LAZY]
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_the_engine_never_imports_the_built_in_passes(engine):
    for path, tree in engine.items():
        assert not _imports(tree, "onnxcompress_passes"), path
    for path in ENGINE.rglob("*.py"):
        assert "onnxcompress_passes" not in path.read_text("utf-8"), path


def test_only_runtime_makes_sessions():
    found = {
        path.name
        for folder in (ENGINE, PASSES)
        for path in folder.rglob("*.py")
        if "InferenceSession" in path.read_text("utf-8")
    }
    assert found == {"runtime.py"}


def test_passes_neither_run_models_nor_talk(passes):
    for path, tree in passes.items():
        for package in ("onnxruntime", "onnxslim", "click", "rich", "sklearn", "torch"):
            assert not _imports(tree, package), path
        assert _parts_read(tree) <= {"analyse", "errors", "graph", "numerics", "kernels", "plan"}
        assert _prints(tree) == [], path


def _prints(tree: ast.Module) -> list[int]:
    """Lines that call print."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"print", "pprint"}
    ]


def test_only_the_command_line_prints(engine):
    for path, tree in engine.items():
        if _part(path) != "cli":
            assert _prints(tree) == [], path
            assert not _imports(tree, "click"), path
            assert not _imports(tree, "rich"), path


CHILDREN = {"verify/memory.py", "testing/checks_replaying.py"}
"""Programs that the engine starts as processes of their own; they answer on standard output."""


def test_nothing_else_writes_to_standard_output(engine):
    found = {
        path
        for path, tree in engine.items()
        if _part(path) != "cli"
        and any("sys.stdout.write" in ast.unparse(statement) for statement in tree.body)
    }
    assert found <= CHILDREN


def _graph_calls(tree: ast.Module) -> set[str]:
    """What a file calls of graphsurgeon, which it imports as `gs`."""
    return {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "gs"
    }


def _graph_writes(tree: ast.Module) -> list[str]:
    """Statements that change a node's or a tensor's fields in place."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.Delete)):
            targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
            found += [ast.unparse(node) for target in targets if _is_graph_field(target)]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in GRAPH_VERBS
            and _is_graph_field(node.func.value)
        ):
            found.append(ast.unparse(node))
    return found


def _is_graph_field(target: ast.expr) -> bool:
    while isinstance(target, ast.Subscript):
        target = target.value
    return isinstance(target, ast.Attribute) and target.attr in GRAPH_FIELDS


def test_only_the_editor_writes_graphs(engine, passes):
    """Elsewhere graphsurgeon is a vocabulary: types to look at, and new nodes to hand over."""
    allowed = {
        "load/source.py": {"export_onnx"},
        "graph/editing.py": {"Node"},
        "graph/branch_removal.py": {"Node"},
    }
    for path, tree in engine.items():
        if path not in EDITING and _imports(tree, "onnx_graphsurgeon"):
            assert _graph_calls(tree) <= allowed.get(path, set()), path
            assert _graph_writes(tree) == [], path
            assert _part(path) in {"load", "graph"}, path
    for path, tree in passes.items():
        assert _graph_calls(tree) <= {"Node"}, path
        assert _graph_writes(tree) == [], path


def test_no_drawer_for_odds_and_ends():
    names = re.compile(r"(^|_)(utils?|helpers?|common|misc)$")
    for folder in (ENGINE, PASSES, ROOT / "tests"):
        odd = [p for p in folder.rglob("*") if p.suffix in {".py", ""} and names.search(p.stem)]
        assert odd == []


def test_every_module_says_what_it_is_for(engine, passes):
    for path, tree in (*engine.items(), *passes.items()):
        words = ast.get_docstring(tree)
        assert words, path
        assert words.splitlines()[0].endswith((".", ":", "?")), path


def test_annotations_are_not_evaluated(engine, passes):
    for path, tree in (*engine.items(), *passes.items()):
        if len(tree.body) > 1:
            assert "__future__.annotations" in set(_imported(tree)), path


BAD = """
import onnxcompress_passes.svd
from onnxcompress.verify import metrics
def f(node):
    from onnxcompress import cli
    print(node)
    gs.Constant("k", 1)
    node.inputs[0] = node.outputs.pop()
    del node.attrs["pads"]
"""


def test_these_rules_see_what_they_forbid():
    tree = ast.parse(BAD)
    assert _imports(tree, "onnxcompress_passes")
    assert _backward("load/x.py", tree) == {"verify", "cli"}
    assert _backward("report/x.py", tree) == {"cli"}
    assert _prints(tree) == [6]
    assert _graph_calls(tree) == {"Constant"}
    assert sorted(_graph_writes(tree)) == [
        "del node.attrs['pads']",
        "node.inputs[0] = node.outputs.pop()",
        "node.outputs.pop()",
    ]
