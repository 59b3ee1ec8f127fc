"""What a plan relies on: replay from a file, agreement between processes, no trace of failures."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import Any, ClassVar

import onnx

from onnxcompress.analyse.facts import Facts, Need, analyse
from onnxcompress.errors import PassError
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.memo import Memo
from onnxcompress.plan.contract import Candidate, Pass, Refusal, Site, candidate_from_dict
from onnxcompress.plan.options import collect
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.testing.checks_measuring import (
    combinations,
    demand,
    octets,
    proposals,
    representatives,
    rewritten,
    words,
)
from onnxcompress.testing.zoo import Entry, zoo

_SEEDS = ("1", "2")
_ASK = "from onnxcompress.testing.checks_replaying import answer; answer()"


def check_replay(owner: Pass[Any], entry: Entry) -> None:
    """A candidate written into a plan file and read back rewrites to the same bytes."""
    for offers in proposals(owner, entry).sites:
        for candidate in representatives(offers):
            replayed = candidate_from_dict(json.loads(json.dumps(candidate.to_dict())), owner)
            demand(
                replayed.setting == candidate.setting,
                f"{words(candidate)}: read back from a plan the setting is {replayed.setting}",
            )
            demand(
                replayed.to_dict() == candidate.to_dict(),
                f"{words(candidate)}: read back from a plan it is {replayed}",
            )
            model = entry.canonical()
            results = [octets(rewritten(owner, model, [c])) for c in (candidate, replayed)]
            demand(results[0] == results[1], f"{words(candidate)}: replayed, another model")


def check_rollback(owner: Pass[Any], entry: Entry) -> None:
    """A rewrite that raises after its edits leaves nothing behind, here or in other rewrites."""
    for choice in combinations(proposals(owner, entry)):
        model = entry.canonical()
        before = octets(model)
        for doomed in choice:
            others = [c for c in choice if c is not doomed]
            expected = rewrite(model, others, {owner.name: owner}, strict=True)
            saboteur = _Saboteur(owner, doomed.site.node)
            found = rewrite(model, choice, {owner.name: saboteur}, memo=Memo())
            what = f"{words(doomed)}: after its failure"
            undone = [(refusal.node, bool(refusal.reason)) for refusal in found.rolled_back]
            demand(undone == [(doomed.site.node, True)], f"{what} rolled back is {undone}")
            demand(octets(found.model) == octets(expected.model), f"{what} a trace is left")
            demand(octets(model) == before, f"{what} the input model is another")


def check_hash_seed(owner: Pass[Any]) -> None:
    """Two processes that hash strings differently offer the same and write the same bytes.

    On the model with the most sites, where order has the most to show.
    """
    entry = max(zoo(), key=lambda entry: len(proposals(owner, entry).sites))
    cls = type(owner)
    source = (cls.__module__, inspect.getfile(cls))
    # Pickled apart: it can only be read once the module of the class is there.
    question = pickle.dumps(
        (source, pickle.dumps(owner), octets(entry.canonical()), dict(entry.sizes))
    )
    with ExitStack() as stack:
        # Files, not pipes: a process that dies early does not take the question's writer along.
        files = [stack.enter_context(TemporaryFile()) for _ in _SEEDS]
        for file in files:
            file.write(question)
            file.seek(0)
        running = [
            subprocess.Popen(
                [sys.executable, "-c", _ASK],
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            for file, seed in zip(files, _SEEDS, strict=True)
        ]
        answers = [process.communicate() for process in running]
    for process, (_, trouble) in zip(running, answers, strict=True):
        last = trouble.decode(errors="replace").strip().splitlines()[-1:]
        demand(process.returncode == 0, f"on '{entry.name}' in a process of its own: {last}")
    one, other = (told for told, _ in answers)
    demand(one == other, f"on '{entry.name}' results depend on PYTHONHASHSEED")


def answer() -> None:
    """Read a question of `check_hash_seed` from standard input, and answer it."""
    (module, path), pickled, model, sizes = pickle.load(sys.stdin.buffer)  # noqa: S301
    _make_importable(module, path)
    owner = pickle.loads(pickled)  # noqa: S301  (both come from the process that started this one)
    facts = analyse(onnx.load_model_from_string(model), sizes)
    options = collect(facts, [owner])
    told = hashlib.sha256(repr(options).encode())
    for choice in combinations(options):
        told.update(octets(rewritten(owner, facts.model, choice)))
    sys.stdout.write(told.hexdigest())


def _make_importable(module: str, path: str) -> None:
    """Import a module by its name, or from its file: a test or a script has no importable name."""
    script = module == "__main__"
    try:
        if not script:
            importlib.import_module(module)
            return
    except ImportError:
        pass
    # Under another name than __main__ a script defines its classes and does nothing else.
    spec = importlib.util.spec_from_file_location("__mp_main__" if script else module, path)
    if spec is None or spec.loader is None:
        raise PassError(f"module '{module}' at '{path}' cannot be imported")
    sys.modules[module] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[module])


class _Saboteur(Pass[Any]):
    """Does what another pass does, and at one node raises when all is done."""

    name: ClassVar[str] = "saboteur"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __init__(self, owner: Pass[Any], node: str) -> None:
        self._owner, self._node = owner, node
        # The stamp in the nodes has to be the owner's.
        self.name = owner.name  # type: ignore[misc]

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        return self._owner.sites(facts)

    def candidates(self, site: Site, facts: Facts) -> Sequence[Candidate[Any]]:
        return self._owner.candidates(site, facts)

    @property
    def works_together(self) -> bool:
        return self._owner.works_together

    def rewrite(self, candidate: Candidate[Any], edit: Editor) -> None:
        self.rewrite_together([candidate], edit)

    def rewrite_together(self, candidates: Sequence[Candidate[Any]], edit: Editor) -> None:
        self._owner.rewrite_together(candidates, edit)
        if any(candidate.site.node == self._node for candidate in candidates):
            raise PassError("sabotaged on purpose")
