"""The same models whatever the executor; killed workers lose nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
import pytest

from onnxcompress.config import Config
from onnxcompress.errors import OnnxCompressError, PassError, UsageError
from onnxcompress.latency.interleave import Budget
from onnxcompress.plan.options import collect
from onnxcompress.runtime import Execution
from onnxcompress.search.driver import Request, search
from onnxcompress.search.executors import Executor, Local, Processes, Serial
from onnxcompress.search.results import Family, plan_name
from onnxcompress.search.workshop import Found, Shared, Task, Workshop


@dataclass
class Counting(Local):
    """Serial, and says what it was asked for; stops after so many tasks as if it were killed."""

    most: int = 10**6
    asked: list[str] = field(default_factory=list)

    def run(self, shared: Shared, tasks: Sequence[Task]) -> Iterator[Found]:
        workshop = Workshop(shared)
        for task in tasks:
            if len(self.asked) == self.most:
                raise KeyboardInterrupt
            self.asked.append(task.key)
            yield workshop(task)


def models(family: Family, folder: Path) -> dict[str, bytes]:
    return {row.name: (folder / row.name).read_bytes() for row in family.rows}


@pytest.fixture(autouse=True, scope="module")
def in_a_hurry() -> Iterator[None]:
    """No test here looks at a latency: they are measured, but not for long."""
    brief = Budget(rounds=2, seconds=0.0, min_runs=2, warmup_runs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxcompress.search.driver.LONG", brief)
        patch.setattr("onnxcompress.search.driver.BRIEF", brief)
        yield


@pytest.fixture(scope="module")
def reference(
    in_a_hurry: None,
    network: onnx.ModelProto,
    config_for: Callable[..., Config],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Family, Path]:
    folder = tmp_path_factory.mktemp("serial")
    family = search(network, config_for(), Request(folder=folder, count=4, executor=Serial()))
    return family, folder


def test_a_family(reference: tuple[Family, Path], network: onnx.ModelProto) -> None:
    family, folder = reference
    assert 2 <= len(family.rows) <= 4
    assert family.allowed == {"combinations": 9, "looked_at": 9}
    assert [one["layers"] for one in family.superblocks] == [["a", "b"], ["c"]]
    for row in family.rows:
        model = onnx.load(folder / row.name)
        onnx.checker.check_model(model, full_check=True)
        shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
        convs = [node for node in model.graph.node if node.op_type == "Conv"]
        expected = [round(8 * row.ratios[0])] * 2 + [round(12 * row.ratios[1])]
        assert [shapes[node.input[1]][0] for node in convs] == expected
        assert row.figures["params"] < family.original["params"]
        assert row.figures["file_bytes"] == (folder / row.name).stat().st_size
        assert (folder / plan_name(row.name)).exists()
    assert family.recommended in family.front


def test_processes_make_the_same_models(
    reference: tuple[Family, Path],
    network: onnx.ModelProto,
    config_for: Callable[..., Config],
    folder: Path,
) -> None:
    family, place = reference
    again = search(network, config_for(), Request(folder=folder, count=4, executor=Processes(2)))
    # Which are built depends on measured times; those that both built are equal.
    ours, theirs = models(again, folder), models(family, place)
    common = set(ours) & set(theirs)
    assert common
    assert {name: ours[name] for name in common} == {name: theirs[name] for name in common}


def test_plans_make_the_same_models(
    reference: tuple[Family, Path], network: onnx.ModelProto, config_for: Callable[..., Config]
) -> None:
    import onnxcompress as oc

    family, place = reference
    config = config_for()
    for row in family.rows[-1:]:
        result = oc.compress(
            network,
            plan=place / plan_name(row.name),
            data=config.data,
            eval_data=config.eval_data,
            max_drop=100.0,
            min_snr=-100.0,
            threads=1,
            gate=False,
        )
        found = result.model.SerializeToString(deterministic=True)
        assert found == (place / row.name).read_bytes()


def test_networks_are_trained(
    network: onnx.ModelProto, config_for: Callable[..., Config], tmp_path: Path
) -> None:
    """By processes as by one: the same weights, and closer to the seed network than without."""
    pytest.importorskip("torch", reason="no PyTorch: pip install 'onnxcompress[finetune]'")
    half = Request(folder=tmp_path / "plain", count=1, also=((0.5, 0.5), (0.5, 1.0)))
    unrepaired = replace(config_for(), repair="off")
    plain = search(network, unrepaired, half)
    config = replace(unrepaired, finetune="30e")
    trained = search(network, config, replace(half, folder=tmp_path / "trained"))
    places = replace(half, folder=tmp_path / "processes", executor=Processes(2))
    again = search(network, config, places)
    before, after = ({row.name: row for row in one.rows} for one in (plain, trained))
    for name in ("c0.5-0.5.onnx", "c0.5-1.onnx"):
        assert after[name].figures["finetune"]["improved"]
        assert after[name].error < before[name].error
        assert "finetune" not in before[name].figures
        one, other = ((tmp_path / f / name).read_bytes() for f in ("trained", "processes"))
        assert one == other != (tmp_path / "plain" / name).read_bytes()
    assert again.to_dict()["models"][0]["finetune"]["epochs"]


def test_what_training_lacks_is_said_first(
    network: onnx.ModelProto,
    config_for: Callable[..., Config],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> None:
        raise UsageError("no PyTorch")

    monkeypatch.setattr("onnxcompress.retraining.require_torch", missing)
    config, asked = replace(config_for(), finetune="1e"), Counting()
    with pytest.raises(UsageError, match="no PyTorch"):
        search(network, config, Request(folder=folder, executor=asked))
    assert asked.asked == []


def test_a_search_that_was_interrupted_goes_on(
    network: onnx.ModelProto, config_for: Callable[..., Config], folder: Path
) -> None:
    every = ((0.75, 1.0), (1.0, 0.5), (0.5, 0.5))
    request = Request(folder=folder, count=1, also=every)
    cut = Counting(most=6)
    with pytest.raises(KeyboardInterrupt):
        search(network, config_for(), replace(request, executor=cut))
    rest = Counting()
    family = search(network, config_for(), replace(request, executor=rest))
    assert not set(cut.asked) & set(rest.asked)
    built = [key for key in (*cut.asked, *rest.asked) if key.startswith("network")]
    assert len(built) == len(family.rows)
    # Once more: nothing is left to do, unless a file was changed.
    idle = Counting()
    search(network, config_for(), replace(request, executor=idle))
    assert idle.asked == []
    (folder / family.rows[0].name).write_bytes(b"something else")
    again = Counting()
    repeated = search(network, config_for(), replace(request, executor=again))
    assert len(again.asked) == 1
    assert models(repeated, folder)[family.rows[0].name] != b"something else"


def test_another_search_in_the_same_folder_is_refused_and_does_no_harm(
    network: onnx.ModelProto, config_for: Callable[..., Config], folder: Path
) -> None:
    request = Request(folder=folder, count=1)
    search(network, config_for(), request)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="holds a search with another model"):
        search(network, config_for(ratios="0.5+0.25"), request)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    idle = Counting()
    search(network, config_for(), replace(request, executor=idle))
    assert idle.asked == []
    other = search(network, config_for(ratios="0.5+0.25"), replace(request, force=True))
    assert [each["ratios"] for each in other.superblocks] == [[1.0, 0.5, 0.25]] * 2


def test_findings_about_other_superblocks_are_not_believed(
    network: onnx.ModelProto,
    config_for: Callable[..., Config],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a search knew of the network is lost, and other superblocks come out than before."""
    request = Request(folder=folder, count=1)
    search(network, config_for(), request)
    (folder / "run" / "journal.jsonl").unlink()
    # As long as they come out the same, nothing is built again.
    idle = Counting()
    search(network, config_for(), replace(request, executor=idle))
    assert idle.asked == []
    (folder / "run" / "journal.jsonl").unlink()
    monkeypatch.setattr(
        "onnxcompress.search.driver.collect",
        lambda facts, owners: collect(facts, [replace(owners[0], segments=1)]),
    )
    with pytest.raises(UsageError, match="holds a search of other superblocks"):
        search(network, config_for(), request)


def test_a_network_with_another_interface_is_a_fault(
    network: onnx.ModelProto, config_for: Callable[..., Config], folder: Path
) -> None:
    shared = shared_of(network, config_for(), folder)
    changed = onnx.ModelProto()
    changed.CopyFrom(shared.prepared.source.model)
    changed.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    source = replace(shared.prepared.source, model=changed)
    workshop = Workshop(replace(shared, prepared=replace(shared.prepared, source=source)))
    with pytest.raises(PassError, match="network 1-0: "):
        workshop(Task((1, 0), briefly=False))


def test_a_cluster_does_not_hand_out_gpus(
    network: onnx.ModelProto, config_for: Callable[..., Config], folder: Path
) -> None:
    @dataclass
    class Elsewhere(Counting):
        elsewhere = True

    config = replace(config_for(), execution=Execution(("cuda",), 1))
    with pytest.raises(UsageError, match="goes with --providers cpu"):
        search(network, config, Request(folder=folder, executor=Elsewhere()))


@dataclass(frozen=True)
class Deadly(Task):
    """A task that takes its worker along when it gets there, as often as its file says."""

    path: str = ""

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        left = int(Path(self.path).read_text())
        if left:
            Path(self.path).write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("deaths", "survives"), [(1, True), (10, False)])
def test_workers_that_die(
    network: onnx.ModelProto,
    config_for: Callable[..., Config],
    folder: Path,
    tmp_path: Path,
    deaths: int,
    survives: bool,
) -> None:
    shared = shared_of(network, config_for(), folder)
    path = tmp_path / "deaths"
    path.write_text(str(deaths))
    tasks = [
        Task((1, 0), briefly=True),
        Deadly((0, 1), briefly=True, path=str(path)),
        Task((1, 1), briefly=True),
    ]
    pool: Executor = Processes(2)
    if survives:
        found = sorted(one.task.vector for one in pool.run(shared, tasks))
        assert found == [(0, 1), (1, 0), (1, 1)]
    else:
        with pytest.raises(OnnxCompressError, match="workers died 3 times"):
            list(pool.run(shared, tasks))


def shared_of(network: onnx.ModelProto, config: Config, folder: Path) -> Shared:
    """What a search would share."""
    kept: list[Shared] = []

    @dataclass
    class Catching(Local):
        def run(self, shared: Shared, tasks: Sequence[Task]) -> Iterator[Found]:
            kept.append(shared)
            raise KeyboardInterrupt
            yield

    with pytest.raises(KeyboardInterrupt):
        search(network, config, Request(folder=folder, executor=Catching()))
    return kept[0]
