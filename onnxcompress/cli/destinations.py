"""Where the results of a job go, checked before the work: nothing precious is overwritten."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from onnxcompress.errors import OutputError, UsageError
from onnxcompress.report.write import check_writable, data_path


@dataclass(frozen=True)
class Destinations:
    """Paths of a job's files; None where there is no such file.

    Attributes:
        source: IN, unless it is a pipe.
        model: OUT, unless it is a pipe or nothing is rewritten.
        data: the weights of OUT, with external data.
        report: the report.
        plan: the plan of a dry run, in place of the model.
    """

    source: Path | None
    model: Path | None
    data: Path | None
    report: Path | None
    plan: Path | None

    @classmethod
    def of(
        cls, source: str, out: str, *, report: str | None, dry_run: bool, external_data: bool
    ) -> Destinations:
        """The destinations that the command line's texts name.

        Raises:
            UsageError: OUT is a pipe where a name is needed, or a terminal.
        """
        path = None if out == "-" else Path(out)
        given = None if source == "-" else Path(source)
        if path is None:
            if dry_run:
                raise UsageError("--dry-run writes OUT.plan.json: give OUT a name, not '-'")
            if external_data:
                raise UsageError("--save-as-external-data needs a file: give OUT a name, not '-'")
            if sys.stdout is None or sys.stdout.isatty():
                raise UsageError("OUT is '-', but standard output is no pipe")
        elif not path.name:
            raise OutputError(f"'{path}' is a folder: give a file name for the result")
        if dry_run and path is not None:
            return cls(given, None, None, None, path.with_name(path.name + ".plan.json"))
        report_path = Path(report) if report is not None else None
        if report_path is None and path is not None:
            report_path = path.with_name(path.name + ".report.json")
        data = data_path(path) if path is not None and external_data else None
        return cls(given, path, data, report_path, None)

    def check(self, *, force: bool) -> None:
        """Refuse destinations that cannot be written, collide, or hold something already.

        Raises:
            UsageError: two of the files are one, or one is IN.
            OutputError: a file cannot be written, or exists and `force` is not set.
        """
        files = [p for p in (self.model, self.data, self.report, self.plan) if p is not None]
        for path in files:
            check_writable(path)
        known = [self.source] if self.source is not None else []
        for path in files:
            for other in known:
                if _same(path, other):
                    role = "IN" if other == self.source else f"'{other}'"
                    raise UsageError(f"'{path}' and {role} are the same file: IN is never changed")
            known.append(path)
        for precious in (self.model, self.data):
            if precious is not None and precious.exists() and not force:
                raise OutputError(f"'{precious}' exists: use --force to overwrite it")
        data, source = self.data, self.source
        if data is not None and source is not None and data.exists() and _reads(source, data):
            raise UsageError(f"'{data}' holds the weights of IN: give OUT another name")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or (
            one.exists() and other.exists() and one.samefile(other)
        )
    except (OSError, ValueError):
        return False


def _reads(source: Path, data: Path) -> bool:
    """Whether the model `source` keeps weights in `data`."""
    import onnx

    try:
        model = onnx.load(source, load_external_data=False)
    except Exception:  # noqa: BLE001  (what is wrong with IN is told when it is loaded)
        return False
    locations = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return any(_same(source.parent / location, data) for location in locations)
