"""Composed statements are kept as long as there is room for them, however long they are."""

import threading

from db import lexical_statements, search_statements
from db.conditions import AllOf, Compares, Operator
from db.filters import Filter
from db.lexical_statements import shape_of
from db.memory import View
from db.search_statements import Metric
from db.statement_cache import ENTRY_BYTES, MAX_BYTES, StatementCache


def composer(*, max_bytes: int = 10 * ENTRY_BYTES) -> tuple[StatementCache[[int, int]], list[int]]:
    """Returns what composes statements of a number and a length, and the numbers of those it composed."""
    composed: list[int] = []

    def compose(number: int, length: int) -> bytes:
        composed.append(number)
        return f"{number}".encode().ljust(length)

    return StatementCache(compose, max_bytes=max_bytes), composed


def test_a_statement_is_composed_once() -> None:
    statements, composed = composer()
    assert statements(1, 100) is statements(1, 100)
    assert statements(1, 100) != statements(2, 100)
    assert composed == [1, 2]


def test_those_left_alone_for_the_longest_time_make_room() -> None:
    statements, composed = composer(max_bytes=5 * (ENTRY_BYTES + 200))
    for number in (1, 2, 3, 4, 5, 1, 6, 1, 2):
        statements(number, 100)
    assert composed == [1, 2, 3, 4, 5, 6, 2], "2 had to go for 6"


def test_long_statements_take_the_room_of_many_short_ones() -> None:
    statements, composed = composer(max_bytes=100_000)
    for number in range(1_000):
        statements(number, 20_000)
        assert statements.bytes_kept <= 100_000
    statements(999, 20_000)
    assert len(composed) == 1_000
    statements(1_000, 60_000)
    assert statements.bytes_kept == 0, "longer than there is room for"
    assert len(statements(1_000, 60_000)) == 60_000


def test_arguments_by_name_count() -> None:
    def compose(*, wide: bool) -> bytes:
        return b"wide" if wide else b"narrow"

    statements = StatementCache(compose)
    assert [statements(wide=True), statements(wide=False), statements(wide=True)] == [b"wide", b"narrow", b"wide"]


def test_threads_share_what_one_of_them_composed() -> None:
    together = threading.Barrier(4)

    def compose(_number: int) -> bytes:
        together.wait(10)  # all of them find nothing kept
        return bytes(bytearray(b"composed"))

    statements = StatementCache(compose)
    seen: list[bytes] = []
    threads = [threading.Thread(target=lambda: seen.append(statements(1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(statement) for statement in seen}) == 1
    assert statements.bytes_kept == 2 * len(b"composed") + ENTRY_BYTES


def test_ever_new_filters_of_the_greatest_length_do_not_fill_the_memory() -> None:
    keys = tuple("abcdefgh")
    for number in range(1, 64):
        conditions = [Compares(keys, Operator.LESS, "x")] * number + [Compares(keys, Operator.EQUAL, 1.0)] * (
            63 - number
        )
        compiled = Filter(where=AllOf(tuple(conditions))).compiled()
        assert compiled.where is not None
        assert len(compiled.where) > 15_000
        search_statements.table(search_statements.shape_of(Metric.COSINE, View.BASIC, compiled, exclude=False))
        lexical_statements.search(
            shape_of(compiled, exclude=False, phrases=False, prefixes=True), all_found=False, narrowed=False
        )
        assert search_statements.table.bytes_kept <= MAX_BYTES
        assert lexical_statements.search.bytes_kept <= MAX_BYTES
    assert lexical_statements.search.bytes_kept > MAX_BYTES / 2, "they would have filled it"
