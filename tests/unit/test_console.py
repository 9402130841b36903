from __future__ import annotations

import io
import os
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest
from rich.table import Table
from rich.text import Text

from tskd import console


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock.monotonic)
    return clock


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations_as_a_person_says_them(seconds: float, said: str) -> None:
    assert console.duration(seconds) == said


def test_plain_progress_says_the_time_left_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """40 of 100 steps done before the resume; 15 steps in 30 s make 2 s each."""
    with console.progress("distill", 100, start=40) as advance:
        for done in range(41, 101):
            clock.now += 2
            advance(done, f"loss {done}")
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[2] == "distill: 55/100, 1 min 30 s left, loss 55"
    assert lines[-1] == "distill: 100/100, 0 s left, loss 100"
    assert len(lines) == 12


def test_a_short_job_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("quick", 3) as advance:
        for done in range(1, 4):
            clock.now += 0.5
            advance(done)
    assert capsys.readouterr().err == ""


def test_the_end_is_said_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A last tile reaches the total before its frame does."""
    with console.progress("predict", 2) as advance:
        for done in (0.5, 1.5, 2.0, 2, 2):
            clock.now += 1
            advance(done)
    assert [line for line in capsys.readouterr().err.splitlines() if "2/2" in line] == ["predict: 2/2, 0 s left"]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress("distill", 10, start=4) as advance:
        advance(10, "loss 0.5")
    assert "10/10" in screen.getvalue()
    assert "loss 0.5" in screen.getvalue()


@pytest.mark.parametrize(
    ("shell", "drawn"), [(None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=1), True)]
)
def test_a_bar_in_a_notebook_and_not_where_jupyter_is_only_imported(
    shell: object, drawn: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts that run notebooks, and IPython on a terminal, got bars in their logs."""
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython", cast(ModuleType, SimpleNamespace(get_ipython=lambda: shell)))
    asked: list[str] = []
    monkeypatch.setattr(console, "find_spec", lambda name: asked.append(name) or object())
    with console.progress("quick", 3) as advance:
        advance(3)
    assert (asked == ["ipywidgets"]) == drawn
    assert bool(capsys.readouterr().err) == drawn


def test_messages_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("hello")
    console.warn("careful")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\nwarning: careful\n")


def test_without_stderr_nothing_is_said_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a window of ``pythonw``. Red where a warning goes to stdout, into somebody's JSON."""
    monkeypatch.setattr(sys, "stderr", None)
    console.warn("careful")
    with console.progress("images", 2) as advance:
        clock.now += 99
        advance(2)
    assert capsys.readouterr().out == ""


def test_streams_that_are_missing_lead_nowhere_and_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = sys.stdout
    monkeypatch.setattr(sys, "stderr", None)
    console.open_missing_streams()
    assert sys.stdout is kept
    with sys.stderr as opened:
        print("\u202e ä", file=opened)
        assert (opened.name, os.get_inheritable(opened.fileno())) == (os.devnull, True)


def test_counting_shows_a_job_whose_total_comes_late(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.counting("images") as count:
        for done in range(1, 5):
            clock.now += 4
            count(done, 4)
    assert capsys.readouterr().err.splitlines()[-1].startswith("images: 4/4")


@pytest.mark.parametrize("launcher", ["RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_of_several_processes_only_the_first_speaks(
    launcher: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for rank in range(3):
        monkeypatch.setenv(launcher, str(rank))
        console.say(f"process {rank}")
    assert capsys.readouterr().err == "process 0\n"


HOSTILE = {
    "title\x1b]0;pwned\x07": "title\\x1b]0;pwned\\x07",
    "back\rspace\x08": "back\\rspace\\x08",
    "mask\u202egnp.exe": "mask\\u202egnp.exe",
    "isolate\u2066\u2069": "isolate\\u2066\\u2069",
    "latin-1 \udce4": "latin-1 \\udce4",
    "\x9b31m": "\\x9b31m",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_steers_a_terminal_is_written_as_an_escape(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.say(name)
    assert capsys.readouterr().err == HOSTILE[name] + "\n"
    file = io.StringIO()
    table = Table(name)
    table.add_row(Text(name))
    console.screen(file=file, width=200, force_terminal=True, color_system=None).print(table, Text(name))
    told = re.sub(r"\\x07|\\x08|\\r", "", HOSTILE[name])  # rich itself drops those three
    assert file.getvalue().splitlines()[-1] == told
    assert not set(file.getvalue()) & set("\x07\x08\r\u202e\u2066\udce4\x9b")


def test_names_in_any_script_stay_as_they_are() -> None:
    text = "Ärzte 😀\tнога\nكبد"
    assert console.printable(text) == text


def test_a_report_is_html_in_a_notebook_and_names_in_it_are_text() -> None:
    """Red where a file's name becomes markup in somebody's notebook."""
    html = console.console_html(lambda page: page.print(Text("<script>alert(1)</script> \x1b[31mred")))
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\x1b[31mred" in html


def test_line_breaks_of_names_that_were_met_are_escaped_and_those_of_texts_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "broken_names", set())
    text = "/d/a\nb/x\n.png: broken.\n  id x\n is left out,\nmatrix\n"
    assert console.printable(text) == text
    for name in ("--out=/d/a\nb", "x\n.png", "\n", "plain.png"):
        console.met(name)
    assert console.printable(text) == "/d/a\\nb/x\\n.png: broken.\n  id x\\n is left out,\nmatrix\n"
