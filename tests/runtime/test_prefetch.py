"""Work done ahead: in order, bounded, and left when nobody wants it any more."""

from __future__ import annotations

import threading
import time

import pytest

from mlx_convnextv2.runtime.prefetch import map_ahead


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 5), (4, 100)])
def test_results_come_in_order_however_long_each_takes(workers: int, ahead: int) -> None:
    def slow_at_first(item: int) -> int:
        time.sleep(0.05 if item == 0 else 0)
        return item * item

    assert list(map_ahead(slow_at_first, range(20), workers, ahead)) == [item * item for item in range(20)]


def test_it_works_ahead_of_who_asks() -> None:
    began = threading.Event()

    def note(item: int) -> int:
        if item == 2:
            began.set()
        return item

    results = map_ahead(note, range(5), workers=1, ahead=3)
    assert next(results) == 0
    assert began.wait(timeout=600)  # though only the first was asked for


@pytest.mark.parametrize("ahead", [1, 4])
def test_no_more_items_are_taken_than_allowed(ahead: int) -> None:
    taken = []

    def items():
        for item in range(10):
            taken.append(item)
            yield item

    results = map_ahead(lambda item: item, items(), workers=2, ahead=ahead)
    for asked in range(1, 6):
        next(results)
        assert len(taken) == asked + ahead - 1


def test_an_error_comes_in_its_place_and_ends_the_work() -> None:
    def fail_at_three(item: int) -> int:
        if item == 3:
            raise OSError("three")
        return item

    results = map_ahead(fail_at_three, range(10), workers=2, ahead=8)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="three"):
        next(results)


def test_what_has_not_begun_is_dropped_when_it_is_closed() -> None:
    began = []
    gate = threading.Event()

    def wait(item: int) -> int:
        began.append(item)
        if item > 0:
            gate.wait(timeout=600)
        return item

    results = map_ahead(wait, range(100), workers=2, ahead=50)
    assert next(results) == 0
    results.close()  # without waiting for the two that have begun
    gate.set()
    time.sleep(0.1)
    assert len(began) <= 4
