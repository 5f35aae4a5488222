"""2,000 damaged files through the reader: refused by name, or read as they were; no crash, no hang, no silent wrong data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zoo_factory import make_zoo

CASES, PROCESSES = 2000, 2


@pytest.mark.slow
def test_damaged_files(tmp_path: Path) -> None:
    zoo, count = make_zoo(tmp_path / "zoo", models=4, snapshots=2), CASES // PROCESSES
    program = Path(__file__).with_name("fuzz_reader.py")
    commands = [[sys.executable, program, zoo, tmp_path / f"work{i}", str(i * count), str(count)] for i in range(PROCESSES)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands]
    outputs = [process.communicate(timeout=900)[0] for process in running]
    assert [process.returncode for process in running] == [0] * PROCESSES, "".join(outputs)
    outcomes = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert sum(sum(outcome.values()) for outcome in outcomes) == CASES
    assert all(outcome["refused"] > 0.8 * count for outcome in outcomes), outcomes
