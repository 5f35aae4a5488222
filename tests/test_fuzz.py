"""Seeded hundreds of the mutated inputs of tests/fuzz_all.py: refused in one line or read; no crash, no
hang, no gigabytes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASES = 300


@pytest.mark.slow
def test_mutated_inputs() -> None:
    program = Path(__file__).with_name("fuzz_all.py")
    done = subprocess.run(
        [sys.executable, program, "--cases", str(CASES), "--seed", "7"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    rows = [line.rsplit(maxsplit=6) for line in done.stdout.splitlines()[1:]]
    assert len(rows) == 14 and all(
        int(cases) == int(refused) + int(accepted) for _, cases, refused, accepted, *_ in rows
    ), done.stdout
    assert sum(int(refused) for _, _, refused, *_ in rows) > CASES // 2, done.stdout
