"""Work done ahead in threads, its results taken in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def map_ahead(
    function: Callable[[Item], Outcome], items: Iterable[Item], workers: int, ahead: int
) -> Generator[Outcome, None, None]:
    """function(item) for every item, in order, computed by `workers` threads before it is asked for.

    Items are taken from their iterable in the caller's thread; at most `ahead` of them, or their results, are held.
    What a function raises is raised where its result would have come. Closing the generator drops what has not begun.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="mlx_convnextv2 prefetch")
    waiting: deque[Future[Outcome]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
