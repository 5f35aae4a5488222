"""When a GPU's memory is short, trains fewer cohorts side by side, then fewer models together."""

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
    """Ends a cohort whose results are no longer wanted."""


class MemoryLimiter:
    """Lets as many cohorts train side by side, and as many models together, as fit into a GPU's memory.

    Args:
        streams: most cohorts at a time.
        stopped: set when results are no longer wanted.
    """

    def __init__(self, streams: int, stopped: threading.Event) -> None:
        self.streams, self.stopped = streams, stopped
        self.running = 0
        self.changed = threading.Condition()

    def fit(
        self, models: list[Model], slots: int, train: Callable[[list[Model], int], Iterator[Trained]]
    ) -> Iterator[Trained]:
        """Train a cohort's models, when another cohort may start, with as many slots as fit into memory.

        Args:
            models: the cohort's models.
            slots: most models that may train together.
            train: trains models in a given number of slots.

        Raises:
            RuntimeError: if memory is too short for a single model.
            Stopped: if results are no longer wanted.
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
                # only once the error is gone: its traceback holds the cohort's tensors
                slots = self._shrink(models[0], streams, slots)

    @contextmanager
    def _admitted(self) -> Iterator[int]:
        """Wait until one more cohort may train; yields how many may train side by side."""
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
        """Free a cohort's memory; halve the streams (`streams` at its start) or its slots; return slots."""
        gc.collect()
        torch.cuda.empty_cache()
        with self.changed:
            if self.streams < streams:
                return slots  # fewer already train now, or soon will
            if self.running == slots == 1:
                self.streams = 1
                return slots  # others may just have ended: try once more, alone
            if self.running > 1:
                before, now = self.running, self.running // 2
                self.streams, what = now, "cohorts train at a time"
            else:
                before, now = slots, slots // 2
                slots, what = now, f"models of {model.recipe.architecture.id} train at a time"
        print(f"the GPU's memory is short: {now} {what}, not {before}", file=sys.stderr)
        return slots


def out_of_memory(error: BaseException | None) -> BaseException | None:
    """Find a full GPU memory, reported by torch, CUDA, Triton or a library, among an error and its causes."""
    while error is not None:
        message = str(error).lower()
        if isinstance(error, RuntimeError) and ("out of memory" in message or "alloc_failed" in message):
            return error
        error = error.__cause__ or error.__context__
    return None
