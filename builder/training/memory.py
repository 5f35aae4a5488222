"""Room in a GPU's memory: when it ran short, fewer cohorts are in flight, then fewer models of one train
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


class Room:
    """Which cohorts may be in flight.

    Args:
        lanes: how many at a time.
        stopped: set when nobody waits for results any more.
    """

    def __init__(self, lanes: int, stopped: threading.Event) -> None:
        self.lanes, self.stopped = lanes, stopped
        self.running = 0
        self.changed = threading.Condition()

    def fit(
        self, models: list[Model], slots: int, train: Callable[[list[Model], int], Iterator[Trained]]
    ) -> Iterator[Trained]:
        """Train models of a cohort, as soon as there is a place for it, with as many slots as memory has room
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
            with self._place() as lanes:
                try:
                    for trained in train(list(left.values()), slots):
                        del left[trained.model.id]
                        yield trained
                except RuntimeError as error:
                    if out_of_memory(error) is None or lanes == slots == 1:
                        raise
                else:
                    return
                # not before the error has gone, whose traceback holds the cohort's tensors
                slots = self._shrink(models[0], lanes, slots)

    @contextmanager
    def _place(self) -> Iterator[int]:
        """Wait for a place among those in flight; gives how many there may be."""
        with self.changed:
            self.changed.wait_for(lambda: self.running < self.lanes or self.stopped.is_set())
            if self.stopped.is_set():
                raise Stopped
            self.running, lanes = self.running + 1, self.lanes
        try:
            yield lanes
        finally:
            with self.changed:
                self.running -= 1
                self.changed.notify_all()

    def _shrink(self, model: Model, lanes: int, slots: int) -> int:
        """Free what a cohort held, and halve the lanes, of which there were so many when it began, or its
        slots; returns those.
        """
        gc.collect()
        torch.cuda.empty_cache()
        with self.changed:
            if self.lanes < lanes:
                return slots  # fewer are in flight by now, or soon
            if self.running == slots == 1:
                self.lanes = 1
                return slots  # others may have just ended: once more alone
            if self.running > 1:
                before, now = self.running, self.running // 2
                self.lanes, told = now, "cohorts train at a time"
            else:
                before, now = slots, slots // 2
                slots, told = now, f"models of {model.recipe.architecture.id} train at a time"
        print(f"the GPU's memory is short: {now} {told}, not {before}", file=sys.stderr)
        return slots


def out_of_memory(error: BaseException | None) -> BaseException | None:
    """The error among an error and its causes that says that a GPU's memory is short: torch's, CUDA's,
    Triton's or a library's.
    """
    while error is not None:
        told = str(error).lower()
        if isinstance(error, RuntimeError) and ("out of memory" in told or "alloc_failed" in told):
            return error
        error = error.__cause__ or error.__context__
    return None
