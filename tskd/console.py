"""What a person sees on stderr: messages and progress with the time left; plain lines where it is not a terminal."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_INTERVAL = 10.0
"""Seconds between two plain progress lines."""
HTML_WIDTH = 110
"""Columns of a report in a notebook."""
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
"""Where launchers say which process this is: torchrun and ``fabric run``, Slurm, Fabric's own subprocesses."""


_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters but tab and line feed, marks of direction, and halves of characters."""


class Advance(Protocol):
    """Report that ``done`` of the total is finished, a part of one too, with a short note such as the loss."""

    def __call__(self, done: float, note: str = "") -> None: ...


broken_names: set[str] = set()
"""Names with line breaks that were met; see :func:`met`."""


def met(name: str) -> None:
    """Remember the line breaks of a name, path or argument, so that :func:`printable` tells them from those of a text.

    Messages quote paths as they are; what was not met, such as a name made up by hand, keeps its breaks.
    """
    for part in re.split("[/=]", name):
        broken_names.update(one for one in (part, part.rpartition(".")[0]) if "\n" in one and one.strip())


def printable(text: str) -> str:
    """Return a text with what could steer a terminal, or turn its direction, written as an escape; lines stay lines.

    Line breaks within names that were :func:`met` are escaped too.
    """
    for name in sorted(broken_names, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}", lambda found: found[0].replace("\n", r"\n"), text)
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def screen(**options: Any) -> Console:
    """Return rich's console, on which every text is :func:`printable`."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Screen(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else printable(text), style, control)

    return Screen(**options)


def table_screen(width: int = 100) -> Console:
    """Return the console for tables on stdout, of so many columns where that is not a terminal."""
    return screen() if sys.stdout.isatty() else screen(width=width)


def console_html(render: Callable[[Console], object]) -> str:
    """Return what a report prints on a terminal as HTML, for a notebook; names in it are escaped."""
    console = screen(record=True, file=io.StringIO(), width=HTML_WIDTH)
    render(console)
    return console.export_html(inline_styles=True, code_format="<pre style='line-height:1.2'>{code}</pre>")


def open_missing_streams() -> None:
    """Let what is said go nowhere where a stream is closed (``2>&-``) or there is none (Windows' ``pythonw``).

    Without one ``print`` takes stdout for stderr, into what a script reads; and a result would be opened as file 2,
    into which libraries write their complaints.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (for as long as the command runs)
            os.set_inheritable(stream.fileno(), True)  # to processes that it starts, as streams are
            setattr(sys, name, stream)


def say(message: str) -> None:
    """Print one line for the person who started the command; of several processes only the first speaks."""
    if launched_as() in (None, "0") and sys.stderr is not None:  # print would take stdout for it
        print(printable(message), file=sys.stderr, flush=True)


def launched_as() -> str | None:
    """Return which of several processes this is, as its launcher says; None where none started it."""
    return next((os.environ[name] for name in _RANKS if name in os.environ), None)


def warn(message: str) -> None:
    """Print one line that the person should act on."""
    say(f"warning: {message}")


def counted(count: int, singular: str) -> str:
    """Return ``1 case``, ``2 cases``."""
    return f"{count} {singular}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return seconds as a person would say them: ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextmanager
def progress(label: str, total: int, *, start: int = 0) -> Iterator[Advance]:
    """Show how far a long job is and how long it still takes; ``start`` is where a resumed job goes on."""
    if (sys.stderr is not None and sys.stderr.isatty()) or _draws_widgets():
        with _rich_progress(label, total, start) as advance:
            yield advance
    else:
        yield _PlainProgress(label, total, start)


@contextmanager
def counting(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress of a job that says ``(done, total)`` itself."""
    with ExitStack() as stack:
        shown: list[Advance] = []

        def count(done: int, total: int) -> None:
            if not shown:
                shown.append(stack.enter_context(progress(label, total)))
            shown[0](done)

        yield count


def _draws_widgets() -> bool:
    """Tell whether this is a notebook that can draw rich's bars; a program that only imports Jupyter's is none."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel") and find_spec("ipywidgets") is not None


class _PlainProgress:
    def __init__(self, label: str, total: int, start: int) -> None:
        self.label, self.total, self.start = label, total, start
        self.began = self.last = time.monotonic()
        self.ended = False
        """All is done, and that was said."""

    def __call__(self, done: float, note: str = "") -> None:
        now = time.monotonic()
        finished = done >= self.total and now - self.began > 2 and not self.ended
        if now - self.last < PLAIN_INTERVAL and not finished:
            return
        self.last, self.ended = now, done >= self.total
        left = (now - self.began) / (done - self.start or 1) * (self.total - done)
        say(f"{self.label}: {int(done)}/{self.total}, {duration(left)} left{', ' + note if note else ''}")


@contextmanager
def _rich_progress(label: str, total: int, start: int) -> Iterator[Advance]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=screen(stderr=True), transient=False) as bar:
        task = bar.add_task(label, total=total, completed=start, note="")

        def advance(done: float, note: str = "") -> None:
            bar.update(task, completed=done, note=note)

        yield advance
