"""The small model and data that come with onnxcompress, found and checked before use.

They lie in ``_models`` inside an installed package, and in ``models`` beside the package in a
checkout or an editable install. ``manifest.json`` in the same folder holds the SHA-256 of each: a
half-finished download, a line-ending conversion or a pointer left by a large-file store is reported
as such, and not as an unreadable model. A checksum that lies beside its file guards against
accidents, not against malice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from onnxcompress.errors import ModelError, UsageError

MANIFEST = "manifest.json"
_REMEDY = "install onnxcompress again, or restore the file from the repository"


def search_roots(package: Path) -> tuple[Path, ...]:
    """The folders that may hold the embedded files, the first choice first.

    Args:
        package: the folder of the import package ``onnxcompress``.

    Returns:
        The folder of an installed wheel, then that of a checkout. The order matters: beside an
        installed package, ``models`` can be anyone's.
    """
    return package / "_models", package.parent / "models"


DEFAULT_ROOTS = search_roots(Path(__file__).resolve().parent)


def embedded(name: str, *, roots: Sequence[Path] = DEFAULT_ROOTS) -> Path:
    """The path of an embedded file whose content has just been checked.

    Args:
        name: the file's name, such as ``digits_cnn.onnx``; :func:`embedded_names` lists them.
        roots: folders to look in; the first that holds a manifest is used, alone.

    Returns:
        The path of the file, to be read only: the file is shared by everyone who uses this
        installation.

    Raises:
        UsageError: no embedded file has this name.
        ModelError: the file or the manifest is missing, unreadable or not what was shipped.
    """
    folder = _folder(roots)
    checksums = _checksums(folder / MANIFEST)
    if name not in checksums:
        known = ", ".join(sorted(checksums))
        raise UsageError(f"no embedded file is called {name!r}; there are: {known}")
    path = folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelError(
            f"the embedded file {path} cannot be read ({reason}); {_REMEDY}"
        ) from error
    if hashlib.sha256(content).hexdigest() != checksums[name]:
        raise ModelError(
            f"the embedded file {path} ({len(content)} bytes) is not the one that was shipped: its"
            f" SHA-256 differs from {MANIFEST}; {_REMEDY}"
        )
    return path


def embedded_names(*, roots: Sequence[Path] = DEFAULT_ROOTS) -> tuple[str, ...]:
    """The names that :func:`embedded` knows, sorted.

    Args:
        roots: as for :func:`embedded`.

    Raises:
        ModelError: the manifest is missing or unreadable.
    """
    return tuple(sorted(_checksums(_folder(roots) / MANIFEST)))


def _folder(roots: Sequence[Path]) -> Path:
    """The first of ``roots`` that holds a manifest."""
    for root in roots:
        if (root / MANIFEST).is_file():
            return root
    searched = " or ".join(str(root) for root in roots)
    raise ModelError(f"no {MANIFEST} of the embedded files in {searched}; {_REMEDY}")


def _checksums(manifest: Path) -> dict[str, str]:
    """The SHA-256 (hexadecimal) of each embedded file, by name."""
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        return {str(name): str(entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the list of embedded files {manifest} is unreadable ({error!r}); {_REMEDY}"
        ) from error
