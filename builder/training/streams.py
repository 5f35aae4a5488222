"""Runs several cohorts side by side on one GPU, each in a thread with its own CUDA stream.

A small cohort alone leaves most of the GPU idle.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

WAITING_RESULTS = 64  # finished results that wait to be taken; a full queue stops the streams
HEARTBEAT_SECONDS = 1.0  # after this long without a result, None is yielded
POLL_SECONDS = 0.1  # how often a stream that waits for room checks whether the run was ended


def run_side_by_side(
    cohorts: Iterable[Callable[[], Iterator[Result]]],
    streams: int,
    device: torch.device,
    ended: threading.Event | None = None,
) -> Generator[Result | None, None, None]:
    """Run cohorts side by side.

    Args:
        cohorts: each yields its results one by one when called; the next one starts in a free stream.
        streams: how many cohorts run at a time.
        device: on a GPU each has its own CUDA stream.
        ended: set when results are no longer wanted; a cohort can check it and end between two results.

    Yields:
        The cohorts' results as they come, and None at every heartbeat without one. An exception in a cohort
        is raised here; then, and when the generator is closed, the streams stop at their next result.
    """
    shared = _Shared(iter(cohorts), device, ended or threading.Event())
    threads = [threading.Thread(target=shared.run_stream, daemon=True) for _ in range(streams)]
    for thread in threads:
        thread.start()
    try:
        running = streams
        while running:
            try:
                item = shared.results.get(timeout=HEARTBEAT_SECONDS)
            except queue.Empty:
                item = None
            if item is _STREAM_ENDED:
                running -= 1
            elif isinstance(item, _Failure):
                raise item.error
            else:
                yield item
    finally:
        shared.ended.set()
        for thread in threads:
            thread.join()


_STREAM_ENDED = object()


class _Failure:
    """An exception in a stream."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Shared:
    """The state that streams share."""

    def __init__(
        self, cohorts: Iterator[Callable[[], Iterator[Any]]], device: torch.device, ended: threading.Event
    ) -> None:
        self.cohorts, self.device, self.ended = cohorts, device, ended
        self.lock = threading.Lock()  # a generator of cohorts is not thread-safe
        self.results: queue.Queue[Any] = queue.Queue(WAITING_RESULTS)  # results, failures, _STREAM_ENDED

    def run_stream(self) -> None:
        """Run cohorts until none is left or the run was ended."""
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
        self._put(_STREAM_ENDED)

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
                self.results.put(item, timeout=POLL_SECONDS)
                return
            except queue.Full:
                pass
