"""The batcher alone: who shares a batch, who waits, and what becomes of errors."""

import asyncio
import threading

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

from mlx_convnextv2.serving.batching import Batcher

SMALL, LARGE = np.zeros((2, 2, 1)), np.zeros((3, 2, 1))


class Recorder:
    """Computes each picture's sum, notes each batch, and waits at first until it is let go."""

    def __init__(self):
        self.batches: list[tuple[object, int]] = []
        self.go = threading.Event()

    def __call__(self, what, pixel_values):
        self.batches.append((what, len(pixel_values)))
        assert self.go.wait(60)
        if what == "fails":
            raise RuntimeError("no")
        return [float(one.sum()) for one in pixel_values]


def run(jobs, max_batch=4, max_wait=0.001):
    """What came of jobs (what, pixel values) that arrived while the first was computed, and the batches."""
    recorder = Recorder()

    async def main():
        batcher = Batcher(recorder, max_batch, max_wait)
        tasks = [asyncio.create_task(batcher.run(*jobs[0]))]
        while not recorder.batches:
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(batcher.run(*job)) for job in jobs[1:]]
        await asyncio.sleep(0.01)
        recorder.go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        batcher.close()
        return results

    return asyncio.run(main()), recorder.batches


def test_each_gets_its_own_result():
    jobs = [("sum", np.full((2, 2, 1), number)) for number in range(9)]
    results, batches = run(jobs)
    assert results == [4.0 * number for number in range(9)]
    assert batches == [("sum", 1), ("sum", 4), ("sum", 4)]


def test_other_sizes_and_other_questions_have_batches_of_their_own_and_none_is_forgotten():
    jobs = [("a", SMALL), ("a", SMALL), ("b", SMALL), ("a", LARGE), ("a", SMALL), ("b", SMALL)]
    results, batches = run(jobs)
    assert results == [0.0] * 6
    assert sorted(batches) == [("a", 1), ("a", 1), ("a", 2), ("b", 2)]


def test_an_error_reaches_those_of_its_batch_alone():
    results, _ = run([("sum", SMALL), ("fails", SMALL), ("fails", SMALL), ("sum", SMALL)])
    assert [type(result) for result in results] == [float, RuntimeError, RuntimeError, float]


def test_a_client_that_went_disturbs_nobody():
    recorder = Recorder()

    async def main():
        batcher = Batcher(recorder, 4, 0.001)
        gone = asyncio.create_task(batcher.run("sum", SMALL))
        stays = asyncio.create_task(batcher.run("sum", LARGE))
        waits = asyncio.create_task(batcher.run("of no use", SMALL))
        await asyncio.sleep(0.01)
        gone.cancel()
        waits.cancel()
        recorder.go.set()
        assert await stays == 0.0
        batcher.close()

    asyncio.run(main())
    assert recorder.batches == [("sum", 1), ("sum", 1)]


def test_a_picture_waits_for_one_that_is_on_its_way():
    recorder = Recorder()
    recorder.go.set()

    async def main():
        batcher = Batcher(recorder, 4, max_wait=30)
        batcher.expect(1)
        first = asyncio.create_task(batcher.run("sum", SMALL))
        await asyncio.sleep(0.05)
        assert recorder.batches == []
        second = asyncio.create_task(batcher.run("sum", SMALL))
        await asyncio.sleep(0.05)
        batcher.expect(-1)
        third = asyncio.create_task(batcher.run("sum", SMALL))  # which makes it look again
        await asyncio.gather(first, second, third)
        batcher.close()

    asyncio.run(main())
    assert recorder.batches == [("sum", 3)]


def test_what_waits_is_computed_before_the_end():
    recorder = Recorder()
    recorder.go.set()

    async def main():
        batcher = Batcher(recorder, 2, 0.001)
        tasks = [asyncio.create_task(batcher.run("sum", SMALL)) for _ in range(7)]
        await asyncio.sleep(0)
        batcher.close()
        assert not batcher.alive
        assert await asyncio.gather(*tasks) == [0.0] * 7

    asyncio.run(main())
