"""The store keeps what it was given, and keeps searches apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxcompress.errors import OutputError, UsageError
from onnxcompress.search.store import FILE, Store


def test_findings_outlive_the_process(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "folder", "a search")
    assert store.get("one") is None
    store.put("one", {"error": 0.25, "names": ["a"]})
    # Without closing: as if the process had been killed.
    again = Store(tmp_path / "new" / "folder", "a search")
    assert again.get("one") == {"error": 0.25, "names": ["a"]}
    again.put("one", 2)
    assert store.get("one") == 2


def test_another_search_is_refused_unless_forced(tmp_path: Path) -> None:
    Store(tmp_path, "a search").put("one", 1)
    with pytest.raises(UsageError, match="holds a search with another model, data or options"):
        Store(tmp_path, "another")
    assert Store(tmp_path, "a search").get("one") == 1
    assert Store(tmp_path, "another", force=True).get("one") is None
    assert Store(tmp_path, "another").get("one") is None


def test_what_is_no_store_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text("somebody's notes, which are long enough not to be taken for an empty file")
    before = path.read_bytes()
    with pytest.raises(OutputError, match="cannot be opened"):
        Store(tmp_path, "a search", force=True)
    assert path.read_bytes() == before
    with pytest.raises(OutputError, match="cannot be opened"):
        Store(path, "a search")
