"""What training goes on from when it was killed: one file, rewritten whole after every epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onnxcompress.errors import OutputError
from onnxcompress.progress import Progress
from onnxcompress.report.write import commit, make_folder

_NAME = "finetune.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in a folder.

    Attributes:
        folder: made when it is needed.
        key: everything that training depends on, as text; what has another key is not believed.
        device: where tensors are read to.
        progress: told where there is a checkpoint of another job.
    """

    folder: Path
    key: str
    device: torch.device
    progress: Progress

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / _NAME

    def read(self) -> dict[str, Any] | None:
        """What was written last, of the same job.

        Raises:
            OutputError: there is a file that is no checkpoint.
        """
        if not self.path.exists():
            return None
        try:
            held = torch.load(self.path, map_location=self.device, weights_only=True)
            if held["key"] == self.key:
                values: dict[str, Any] = held["values"]
                return values
        except Exception as error:
            # What unpickling raises on other bytes is anything.
            raise OutputError(f"'{self.path}' is no checkpoint: remove it") from error
        self.progress.note(f"'{self.path}' is of another training: begun anew")
        return None

    def write(self, values: dict[str, Any]) -> None:
        """Replace what was written before.

        Raises:
            OutputError: it cannot be written.
        """
        make_folder(self.folder)
        held = {"key": self.key, "values": values}
        commit([(self.path, lambda file: torch.save(held, file))])
