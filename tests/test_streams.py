"""Cohorts side by side: every result comes, streams run at once, errors and an early end reach them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from builder.progress import Occupancy
from builder.training import streams
from builder.training.streams import run_side_by_side

CPU = torch.device("cpu")


def stream_threads() -> list[threading.Thread]:
    """The threads of runs that are still there."""
    return [thread for thread in threading.enumerate() if "run_stream" in thread.name]


def cohort(*results: int):
    return lambda: iter(results)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_every_result_comes_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "WAITING_RESULTS", 2)
    cohorts = (cohort(*range(10 * i, 10 * i + i)) for i in range(6))
    assert sorted(run_side_by_side(cohorts, count, CPU)) == [10 * i + k for i in range(6) for k in range(i)]


def test_one_stream_keeps_the_order() -> None:
    assert list(run_side_by_side([cohort(1, 2), cohort(3)], 1, CPU)) == [1, 2, 3]


def test_streams_run_side_by_side() -> None:
    meeting = threading.Barrier(2, timeout=30)  # would time out if one cohort waited for the other

    def meet(i: int) -> Iterator[int]:
        meeting.wait()
        yield i

    assert sorted(run_side_by_side([lambda: meet(0), lambda: meet(1)], 2, CPU)) == [0, 1]


def test_an_error_is_raised_and_ends_the_other_streams() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    def fails() -> Iterator[int]:
        yield 1
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        list(run_side_by_side([endless, fails], 2, CPU))
    assert closed.is_set()
    assert not stream_threads()


def test_closing_ends_the_streams_and_starts_no_more() -> None:
    started: list[int] = []

    def counting(i: int) -> Iterator[int]:
        started.append(i)
        while True:
            yield i

    results = run_side_by_side([lambda i=i: counting(i) for i in range(5)], 2, CPU)
    next(results)
    results.close()
    assert len(started) <= 2
    assert not stream_threads()


def test_occupancy_is_the_share_of_slot_steps_that_trained() -> None:
    occupancy = Occupancy()
    assert occupancy.share == 1.0
    occupancy.add(active=30, taken=40)
    occupancy.add(active=10, taken=40)
    assert occupancy.share == 0.5


def test_closing_tells_cohorts_that_are_between_two_results() -> None:
    ended, left = threading.Event(), threading.Event()

    def slow() -> Iterator[int]:
        yield 1
        ended.wait(60)
        left.set()
        yield 2

    results = run_side_by_side([slow], 1, CPU, ended)
    assert next(results) == 1
    results.close()
    assert ended.is_set() and left.is_set() and not stream_threads()
