"""What a search has found, in an SQLite file: killed searches go on, and nothing is done twice.

Every finding is committed when it comes in. A model's file is written before its finding is, so
that what the store knows is there.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from onnxcompress.errors import OutputError, UsageError

FILE = "search.db"
_TABLES = (
    "CREATE TABLE IF NOT EXISTS context (digest TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS findings (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
)


class Store:
    """Findings of one search by name, as plain values.

    Args:
        folder: of the search.
        context: everything that findings depend on, as text.
        force: begin again where the folder holds another search.

    Raises:
        UsageError: the folder holds another search.
        OutputError: the file cannot be opened or written.
    """

    def __init__(self, folder: Path, context: str, *, force: bool = False) -> None:
        self._path = folder / FILE
        digest = hashlib.sha256(context.encode()).hexdigest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path)
            self._begin(digest, force=force)
        except (OSError, sqlite3.Error) as error:
            raise OutputError(f"'{self._path}' cannot be opened: {error}") from error

    def _begin(self, digest: str, *, force: bool) -> None:
        with self._connection:
            for table in _TABLES:
                self._connection.execute(table)
            known = self._connection.execute("SELECT digest FROM context").fetchone()
            if known is None or (known[0] != digest and force):
                self._connection.execute("DELETE FROM findings")
                self._connection.execute("DELETE FROM context")
                self._connection.execute("INSERT INTO context VALUES (?)", (digest,))
            elif known[0] != digest:
                raise UsageError(
                    f"'{self._path}' holds a search with another model, data or options: choose "
                    "another folder, or begin again with --force"
                )

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()

    def get(self, key: str) -> Any | None:
        """A finding, or None."""
        query = "SELECT value FROM findings WHERE key = ?"
        with closing(self._connection.execute(query, (key,))) as rows:
            row = rows.fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        """Keep a finding.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            with self._connection:
                self._connection.execute(
                    "INSERT OR REPLACE INTO findings VALUES (?, ?)", (key, json.dumps(value))
                )
        except sqlite3.Error as error:
            raise OutputError(f"'{self._path}' cannot be written: {error}") from error
