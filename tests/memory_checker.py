"""Finds what Triton kernels do wrong with memory, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle


class Fault(NamedTuple):
    """What a kernel does wrong."""

    kernel: str
    what: str
    numbers: int  # of which it does so


@dataclass
class Launch:
    """The memory that a launch may use, and what its programs do there."""

    kernel: str
    starts: np.ndarray  # addresses of the memory's parts, ascending, and behind their ends
    ends: np.ndarray
    faults: list[Fault]
    reads: list[tuple[int, np.ndarray]] = field(default_factory=list)  # (program, addresses)
    writes: list[tuple[int, np.ndarray]] = field(default_factory=list)

    def access(self, what: str, program: int, pointers: Any, mask: Any) -> TensorHandle:
        """Take note of what a program reads or writes; returns the mask without what is out of bounds."""
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = pointers.data.astype(np.int64)
        part = np.searchsorted(self.starts, addresses, side="right") - 1
        inside = (part >= 0) & (addresses + size <= self.ends[np.maximum(part, 0)])
        asked = np.broadcast_to(mask.data.astype(bool), addresses.shape)
        if (asked & ~inside).any():
            self.faults.append(Fault(self.kernel, f"{what} out of bounds", int((asked & ~inside).sum())))
        (self.reads if what == "reads" else self.writes).append((program, addresses[asked & inside].ravel()))
        return TensorHandle(asked & inside, mask.dtype)

    def find_races(self) -> None:
        """Whether programs write a number that another one reads or writes: nothing says which comes
        first.
        """
        writer, written = _joined(self.writes)
        order = np.lexsort((writer, written))
        writer, written = writer[order], written[order]
        twice = (written[1:] == written[:-1]) & (writer[1:] != writer[:-1])
        reader, read = _joined(self.reads)
        i = np.minimum(np.searchsorted(written, read), max(0, len(written) - 1))
        foreign = (written[i] == read) & (writer[i] != reader) if len(written) else np.zeros(0, bool)
        for what, found in (("two programs write", twice), ("one program reads, another writes", foreign)):
            if found.any():
                self.faults.append(Fault(self.kernel, what, int(found.sum())))


def _joined(accesses: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Programs and addresses, a number each."""
    if not accesses:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate([np.full(len(found), program) for program, found in accesses]), np.concatenate(
        [found for _, found in accesses]
    )


@contextmanager
def checked(beside: Callable[[], Iterable[torch.Tensor]] = lambda: ()) -> Iterator[list[Fault]]:
    """Collects the faults of all launches within; whatever `torch.empty` gives is NaN, so that what reads it
    shows.

    A launch may use the memory of the tensors that it is given, and of those `beside`, whose addresses it
    reads from a table.
    """
    faults: list[Fault] = []
    launches: list[Launch] = []  # the one that runs
    load, store, call = (
        InterpreterBuilder.create_masked_load,
        InterpreterBuilder.create_masked_store,
        GridExecutor.__call__,
    )

    def program(builder: Any) -> int:
        return int(np.ravel_multi_index(builder.grid_idx, builder.grid_dim))

    def checked_load(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        return load(builder, pointers, launches[-1].access("reads", program(builder), pointers, mask), *rest)

    def checked_store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        return store(
            builder, pointers, value, launches[-1].access("writes", program(builder), pointers, mask), *rest
        )

    def checked_call(executor: Any, *args: Any, **constants: Any) -> None:
        given = [x.untyped_storage() for x in (*args, *beside()) if isinstance(x, torch.Tensor)]
        parts = np.array(sorted({(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in given}))
        launches.append(Launch(executor.fn.__name__, parts[:, 0], parts[:, 1], faults))
        call(executor, *args, **constants)
        launches.pop().find_races()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_masked_load", checked_load)
        patch.setattr(InterpreterBuilder, "create_masked_store", checked_store)
        patch.setattr(GridExecutor, "__call__", checked_call)
        patch.setattr(torch, "empty", _filled(torch.empty))
        patch.setattr(torch.Tensor, "new_empty", _filled(torch.Tensor.new_empty))
        yield faults


def _filled(new: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def filled(*args: Any, **options: Any) -> torch.Tensor:
        made = new(*args, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    return filled
