"""A few kills and faults of `scripts/torture.py`: what is run again ends in the same bytes.

The campaign itself is for hand.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "torture.py"
SCENARIOS = 9
EACH = 3  # cases of a scenario: two are kills, one an error


@pytest.mark.slow
def test_a_short_campaign() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--cases", str(EACH * SCENARIOS), "--seed", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    rows = re.findall(r"(\d+) │ +(\d+) │ +(\d+) │ +(\d+) │", done.stdout)
    assert len(rows) == SCENARIOS and all(
        cases == identical == str(EACH) for cases, _, _, identical in rows
    ), done.stdout
    assert sum(int(kills) for _, kills, _, _ in rows) and sum(int(errors) for _, _, errors, _ in rows)
    assert "four builders at once: identical" in done.stdout
    assert len(re.findall("readers beside a growing build: no wrong byte", done.stdout)) == 3
