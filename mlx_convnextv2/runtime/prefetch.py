"""Work done ahead in threads, with results in order."""

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
    """Yield function(item) for every item, in order. `workers` threads compute the results ahead of time.

    The caller's thread takes items from the iterable. At most `ahead` items or results are held. An exception is raised
    in place of the result. Closing the generator drops the work that has not begun.
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
