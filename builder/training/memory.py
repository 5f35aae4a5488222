"""Where a GPU's memory runs short, fewer cohorts train side by side, then fewer models of one train
together; all are trained.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from builder.plan import Model
from builder.trained import Trained


class Stopped(Exception):
    """Ends a cohort whose results nobody waits for any more."""


class MemoryLimiter:
    """Lets as many cohorts train side by side, and as many models together, as a GPU's memory holds.

    Args:
        streams: how many at a time.
        stopped: set when nobody waits for results any more.
    """

    def __init__(self, streams: int, stopped: threading.Event) -> None:
        self.streams, self.stopped = streams, stopped
        self.running = 0
        self.changed = threading.Condition()

    def fit(
        self, models: list[Model], slots: int, train: Callable[[list[Model], int], Iterator[Trained]]
    ) -> Iterator[Trained]:
        """Train models of a cohort, as soon as another may begin, with as many slots as memory has room
        for.

        Args:
            models: of the cohort.
            slots: how many of them may train together.
            train: trains models in so many slots.

        Raises:
            RuntimeError: if memory is short for one model alone.
            Stopped: if nobody waits any more.
        """
        left = {model.id: model for model in models}
        while left:
            with self._admitted() as streams:
                try:
                    for trained in train(list(left.values()), slots):
                        del left[trained.model.id]
                        yield trained
                except RuntimeError as error:
                    if out_of_memory(error) is None or streams == slots == 1:
                        raise
                else:
                    return
                # not before the error has gone, whose traceback holds the cohort's tensors
                slots = self._shrink(models[0], streams, slots)

    @contextmanager
    def _admitted(self) -> Iterator[int]:
        """Wait until one more may train; gives how many may train side by side."""
        with self.changed:
            self.changed.wait_for(lambda: self.running < self.streams or self.stopped.is_set())
            if self.stopped.is_set():
                raise Stopped
            self.running, streams = self.running + 1, self.streams
        try:
            yield streams
        finally:
            with self.changed:
                self.running -= 1
                self.changed.notify_all()

    def _shrink(self, model: Model, streams: int, slots: int) -> int:
        """Free what a cohort held, and halve the streams, of which there were so many when it began, or its
        slots; returns those.
        """
        gc.collect()
        torch.cuda.empty_cache()
        with self.changed:
            if self.streams < streams:
                return slots  # fewer train by now, or soon
            if self.running == slots == 1:
                self.streams = 1
                return slots  # others may have just ended: once more alone
            if self.running > 1:
                before, now = self.running, self.running // 2
                self.streams, what = now, "cohorts train at a time"
            else:
                before, now = slots, slots // 2
                slots, what = now, f"models of {model.recipe.architecture.id} train at a time"
        print(f"the GPU's memory is short: {now} {what}, not {before}", file=sys.stderr)
        return slots


def out_of_memory(error: BaseException | None) -> BaseException | None:
    """The error among an error and its causes that says that a GPU's memory is short: torch's, CUDA's,
    Triton's or a library's.
    """
    while error is not None:
        message = str(error).lower()
        if isinstance(error, RuntimeError) and ("out of memory" in message or "alloc_failed" in message):
            return error
        error = error.__cause__ or error.__context__
    return None
