"""Builds in processes of their own that start at once, for tests that kill many: they and their workers are
forked from a process that has imported what a build needs.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import signal
from collections.abc import Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["testing.preloaded"])


Death = int | tuple[str, str]


def start_build(arguments: Sequence[str], told: Path, dies: Death | None = None) -> BaseProcess:
    """Start `nws-build`.

    Args:
        arguments: its arguments.
        told: file for what it prints.
        dies: when it kills itself: as it learns that so many models have finished; or, of a pattern and
            "before" or "after", before or after the first file whose name matches gets its name.

    Returns:
        The process; the exit code -9 is that of SIGKILL.
    """
    process = FORKED.Process(target=_build, args=(list(arguments), told, dies))
    process.start()
    return process


def living() -> list[int]:
    """Processes that were forked and have not ended, workers among them."""
    server: Any = forkserver._forkserver
    pid = server._forkserver_pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _build(arguments: list[str], told: Path, dies: Death | None) -> None:
    output = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    tracker: Any = resource_tracker._resource_tracker
    tracker._fd = tracker._pid = None  # one of its own: what it tells of a killed process stands in the file
    from builder import build, cli
    from builder.training import workers

    workers.CONTEXT = FORKED  # type: ignore[assignment]
    if isinstance(dies, int):
        _die_after_models(build._ShardWriter, dies)
    elif dies is not None:
        _die_at_file(*dies)
    cli.main(arguments)


def _die_after_models(writer: Any, models: int) -> None:
    advance, finished = writer.advance, itertools.count(1)

    def dying(self: Any, result: Any) -> None:
        if result is not None and next(finished) == models:
            os.kill(os.getpid(), signal.SIGKILL)
        advance(self, result)

    writer.advance = dying


def _die_at_file(pattern: str, moment: str) -> None:
    replace = os.replace

    def dying(source: Any, target: Any) -> None:
        matches = re.search(pattern, str(target))
        if moment == "after" or not matches:
            replace(source, target)
        if matches:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = dying  # type: ignore[assignment]
