"""Writes the page: one file that needs nothing else, neither scripts nor a network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.resources import files
from pathlib import Path

import tskd
from tskd.artifacts import RUN_FILE, canonical_json
from tskd.cells import ENCODING_ERRORS
from tskd.console import warn
from tskd.errors import UserError
from tskd.machine.disk import write_atomic
from tskd.report.blocks import Page
from tskd.report.comparison.files import COMPARISON
from tskd.report.comparison.folder import open_comparison
from tskd.report.comparison.page import comparison_page
from tskd.report.pictures import ROOM
from tskd.report.run.federated import federated_page
from tskd.report.run.folder import RunFolder, open_run
from tskd.report.run.page import run_page

REPORT = "report.html"
MOST_BYTES = 10_000_000
SOURCES = {".py", ".j2", ".css"}
MARK = b"\n<!-- made of "
"""Begins the last line of a page: a digest of the page and of what it was made of."""
TEMPLATE, STYLE = "report.html.j2", "report.css"


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a run or a comparison and return its path.

    Raises UserError where there is neither, or where files that the report needs are missing or changed.
    """
    if (folder / COMPARISON).is_file():
        return _write(folder, partial(comparison_page, open_comparison(folder)))
    if (folder / RUN_FILE).is_file():
        return write_run_report(open_run(folder))
    raise UserError(
        f"{folder}: there is no {RUN_FILE} and no {COMPARISON} here. Give the output folder of a finished "
        "`tskd run` or `tskd compare`."
    )


def write_run_report(run: RunFolder) -> Path:
    """Write ``report.html`` into the folder of a run and return its path."""
    page = (lambda *, room: federated_page(run)) if run.summary.federated else partial(run_page, run)
    return _write(run.path, page, source=_source_of(run))


def update_run_report(run: RunFolder) -> Path:
    """Return the path of a run's report, written anew unless it lies there whole, of the same results and code."""
    path = run.path / REPORT
    try:
        content, _, mark = path.read_bytes().rpartition(MARK)
    except FileNotFoundError:
        return write_run_report(run)
    return path if mark == _mark(content, _source_of(run)) else write_run_report(run)


def _source_of(run: RunFolder) -> bytes:
    """Return what a run's page follows from: its results, which name artifacts and their costs, and our code."""
    code = hashlib.sha256()
    for file in sorted(Path(tskd.__file__).parent.rglob("*.*")):
        if file.suffix in SOURCES:
            code.update(file.read_bytes())
    return canonical_json(run.summary.as_dict()).encode() + code.digest()


def _mark(content: bytes, source: bytes) -> bytes:
    return f"{hashlib.sha256(source + content).hexdigest()} -->\n".encode()


def _write(folder: Path, page: Callable[..., Page], *, source: bytes = b"") -> Path:
    path, content = folder / REPORT, _small_enough(page)
    write_atomic(path, content + MARK + _mark(content, source))
    return path


def _small_enough(page: Callable[..., Page]) -> bytes:
    """Return the page with as many pictures as leave it under 10 MB beside its charts and tables."""
    for room in (ROOM, ROOM // 3, 0):
        content = render(page(room=room)).encode(errors=ENCODING_ERRORS)
        if len(content) < MOST_BYTES:
            return content
    warn(f"the report is {len(content) / 1e6:.0f} MB: its charts and tables alone need that much")
    return content


def render(page: Page) -> str:
    """Return the page as HTML; every text in it is escaped."""
    from jinja2 import Environment, StrictUndefined

    templates = files(tskd) / "templates"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((templates / TEMPLATE).read_text(encoding="utf-8"))
    style = (templates / STYLE).read_text(encoding="utf-8")
    made = f"Written by tskd {tskd.__version__} on {datetime.now(UTC):%Y-%m-%d}."
    return template.render(page=page, style=style, footer=f"{made} Nothing in this file is loaded from elsewhere.")
