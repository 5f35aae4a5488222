"""Progress: the same numbers on a terminal and in lines."""

from __future__ import annotations

import io
import itertools
import time

import pytest
from rich.console import Console

from nws_dataset import console
from nws_dataset.console import Progress, progress


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


def test_lines_come_less_often_with_time(capsys: pytest.CaptureFixture[str], now: list[float]) -> None:
    shown, lines = Progress("main", 8000, done=1000, unit="snapshots"), []
    for second in range(1, 701):
        now[0] = second
        shown.advance(10, note="fold 1" if second == 10 else "")
        if line := capsys.readouterr().err:
            lines.append((second, line))
    assert lines[0] == (10, "main: 1100/8000 snapshots, 600.0 a minute, 0:11:30 left, fold 1\n")
    pauses = [b - a for (a, _), (b, _) in itertools.pairwise(lines)]
    assert pauses == sorted(pauses) and (pauses[0], pauses[-1]) == (10, 34)
    assert lines[-1][1].startswith("main: ") and "left" in lines[-1][1]


def test_sizes() -> None:
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: 0.0)
        shown = Progress("sending", 4_000_000, unit="B", console=Console(file=text))
        patch.setattr(time, "monotonic", lambda: 3600.0)
        shown.advance(1_000_000)
    assert text.getvalue() == "sending: 1.0 MB of 4.0 MB, 277 bytes a second, 3:00:00 left\n"


@pytest.mark.parametrize(
    ("rate", "text"), [(1234.5, "1,234 a second"), (2.0, "120.0 a minute"), (0.001, "3.6 an hour")]
)
def test_speed(rate: float, text: str) -> None:
    assert console._speed(rate) == text


def test_a_bar(now: list[float]) -> None:
    text = io.StringIO()
    terminal = Console(file=text, force_terminal=True, width=100)
    with Progress("main", 4, unit="models", console=terminal) as shown:
        now[0] = 30.0
        shown.advance(begun=1.0, note="mean test accuracy 0.500")
    assert "━" in text.getvalue()
    assert "1/4 models, 4.0 a minute, 0:00:30 left, mean test accuracy 0.500" in text.getvalue()


def test_nothing_to_do_shows_no_bar() -> None:
    text = io.StringIO()
    with Progress("sending", 0, unit="B", console=Console(file=text, force_terminal=True)) as shown:
        assert list(shown.track([])) == []
    assert not text.getvalue()


def test_steps_with_words(capsys: pytest.CaptureFixture[str], now: list[float]) -> None:
    with progress([1.0] * 20) as advance:
        now[0] = 15.0
        advance("[main] fold 0", 1.0)
    assert capsys.readouterr().err == "1/20, 0:04:45 left, [main] fold 0\n"


def test_the_time_left_is_that_of_what_is_left(capsys: pytest.CaptureFixture[str], now: list[float]) -> None:
    """Two at a time; the first takes as long as expected; then the machine is half as fast."""
    with progress([100.0, 300.0, 50.0], done=4, at_once=2) as advance:
        now[0] = 50.0
        advance("a", 100.0)
        now[0] = 350.0
        advance("b", 300.0)
    lines = ["4/7, 0:03:45 left", "5/7, 0:02:55 left, a", "6/7, 0:00:43 left, b"]
    assert capsys.readouterr().err.splitlines() == lines
