"""The map of what was checked lately: bounded in size and time."""

import threading

from memory_service.access.expiring_map import ExpiringMap


def test_entries_end_at_their_time() -> None:
    entries: ExpiringMap[str, int] = ExpiringMap(2)
    entries.put("a", 1, until=10.0)
    assert entries.get("a", now=9.9) == 1
    assert entries.get("a", now=10.0) is None
    assert entries.get("b", now=0.0) is None


def test_the_oldest_make_room() -> None:
    entries: ExpiringMap[str, int] = ExpiringMap(2)
    for value, key in enumerate("abac"):
        entries.put(key, value, until=10.0)
    assert {key: entries.get(key, now=0.0) for key in "abc"} == {"a": 2, "b": None, "c": 3}
    assert len(entries) == 2


def test_many_threads_at_once_leave_it_bounded() -> None:
    entries: ExpiringMap[int, int] = ExpiringMap(100)

    def work(first: int) -> None:
        for key in range(first, first + 2_000):
            entries.put(key, key, until=10.0)
            assert entries.get(key, now=0.0) in {key, None}

    threads = [threading.Thread(target=work, args=(number * 500,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entries) == 100
