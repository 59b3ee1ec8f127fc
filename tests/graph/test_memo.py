"""A bounded memory of results."""

from __future__ import annotations

from onnxcompress.graph.memo import Memo


class Counter:
    """Counts how often each key is computed."""

    def __init__(self, memo, size=1):
        self.memo, self.size = memo, size
        self.computed: list[str] = []

    def ask(self, key):
        def compute():
            self.computed.append(key)
            return f"result of {key}"

        return self.memo.recall(key, compute, lambda _: self.size)


def test_each_key_is_computed_once():
    counter = Counter(Memo())
    assert [counter.ask(k) for k in "abab"] == [f"result of {k}" for k in "abab"]
    assert counter.computed == ["a", "b"]


def test_the_least_recently_used_goes_first():
    counter = Counter(Memo(limit_bytes=3))
    for key in ("a", "b", "c", "a", "d"):
        counter.ask(key)
    # b was the oldest when d came in; a had been used again.
    for key in ("a", "c", "d"):
        counter.ask(key)
    assert counter.computed == ["a", "b", "c", "d"]
    counter.ask("b")
    assert counter.computed == ["a", "b", "c", "d", "b"]


def test_a_result_over_the_limit_is_kept_until_the_next():
    counter = Counter(Memo(limit_bytes=1), size=10)
    assert counter.ask("a") == counter.ask("a")
    assert counter.computed == ["a"]
    counter.ask("b")
    counter.ask("a")
    assert counter.computed == ["a", "b", "a"]


def test_freed_bytes_count_as_free():
    counter = Counter(Memo(limit_bytes=2))
    for key in "abcd":
        counter.ask(key)
    counter.ask("c")
    counter.ask("d")
    assert counter.computed == list("abcd")


def test_none_is_a_result():
    memo, calls = Memo(), []
    for _ in range(2):
        assert memo.recall("k", lambda: calls.append(1), lambda _: 1) is None
    assert len(calls) == 1
