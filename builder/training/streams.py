"""Several cohorts in flight on one GPU: small cohorts leave most of it idle, so each runs in a lane, a thread
with a stream of its own.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

WAITING_RESULTS = 64  # finished results that wait to be taken; a lane stops until there is room
HEARTBEAT_SECONDS = 1.0  # without a result until None comes in its place
LOOK_SECONDS = 0.1  # between looks at whether the flight was ended, while a lane waits for room


def fly(
    cohorts: Iterable[Callable[[], Iterator[Result]]],
    lanes: int,
    device: torch.device,
    ended: threading.Event | None = None,
) -> Generator[Result | None, None, None]:
    """Run cohorts side by side.

    Args:
        cohorts: each gives its results one by one when called; the next one starts in the first lane that is
            free.
        lanes: how many run at a time.
        device: a GPU: every lane has a stream of its own there.
        ended: set when nobody waits for results any more, so that a cohort can look at it and end between two
            of them.

    Yields:
        The cohorts' results as they come, and None at every heartbeat without one. What a cohort raises is
        raised here; then, and when the generator is closed, the lanes stop at their next result.
    """
    flight = _Flight(iter(cohorts), device, ended or threading.Event())
    threads = [threading.Thread(target=flight.run_lane, daemon=True) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    try:
        running = lanes
        while running:
            try:
                item = flight.results.get(timeout=HEARTBEAT_SECONDS)
            except queue.Empty:
                item = None
            if item is _LANE_ENDED:
                running -= 1
            elif isinstance(item, _Failure):
                raise item.error
            else:
                yield item
    finally:
        flight.ended.set()
        for thread in threads:
            thread.join()


_LANE_ENDED = object()


class _Failure:
    """What a lane raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Flight:
    """What the lanes share."""

    def __init__(
        self, cohorts: Iterator[Callable[[], Iterator[Any]]], device: torch.device, ended: threading.Event
    ) -> None:
        self.cohorts, self.device, self.ended = cohorts, device, ended
        self.lock = threading.Lock()  # generators of cohorts are not made for threads
        self.results: queue.Queue[Any] = queue.Queue(WAITING_RESULTS)  # results, failures, _LANE_ENDED

    def run_lane(self) -> None:
        """Cohort after cohort, until there is none or the flight has ended."""
        try:
            with (
                torch.cuda.stream(torch.cuda.Stream(self.device))
                if self.device.type == "cuda"
                else nullcontext()
            ):
                while not self.ended.is_set() and (cohort := self._next()) is not None:
                    self._run(cohort())
        except BaseException as error:  # raised again in the thread that takes the results
            self._put(_Failure(error))
        self._put(_LANE_ENDED)

    def _next(self) -> Callable[[], Iterator[Any]] | None:
        with self.lock:
            return next(self.cohorts, None)

    def _run(self, results: Iterator[Any]) -> None:
        for result in results:
            self._put(result)
            if self.ended.is_set():
                break
        close = getattr(results, "close", None)
        if close is not None:
            close()

    def _put(self, item: Any) -> None:
        while not self.ended.is_set():
            try:
                self.results.put(item, timeout=LOOK_SECONDS)
                return
            except queue.Full:
                pass
