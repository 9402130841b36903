"""What a browser makes of a page: Chromium without a window, asked through a script added to a copy of the page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in _NAMES if (path := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--hide-scrollbars",
    "--virtual-time-budget=10000",
)  # fmt: skip
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
LOOK = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
  width: innerWidth,
  needed: document.documentElement.scrollWidth,
  images: document.images.length,
  broken: [...document.images].filter(image => !image.naturalWidth).length,
  empty_charts: [...document.querySelectorAll(".charts figure svg")].filter(svg => svg.getBBox().width < 100).length,
  small: [...document.querySelectorAll(".charts text, td, p")].filter(text => text.getClientRects().length
    && parseFloat(getComputedStyle(text).fontSize) * (text.getScreenCTM ? text.getScreenCTM().a : 1) < 9.5).length,
  paper: getComputedStyle(document.body).backgroundColor,
  ink: [...document.querySelectorAll(".charts text")].map(text => getComputedStyle(text).fill).at(0),
}), "*"));</script>"""
FRAME = """<!DOCTYPE html><iframe src="page.html" style="width: {width}px; height: 844px; border: 0"></iframe>
<script>addEventListener("message", message => {{ document.body.dataset.seen = message.data; }});</script>"""


@dataclass(frozen=True)
class View:
    """What was measured on a page."""

    width: int
    """Of the window, in CSS pixels."""
    needed: int
    """Width that the page takes: more than the window's means that it scrolls sideways."""
    images: int
    broken: int
    """Images that could not be decoded."""
    empty_charts: int
    small: int
    """Texts that are too small to be read."""
    paper: str
    ink: str | None


def look_at(page: Path, folder: Path, *, width: int, dark: bool = False) -> View:
    """Open a copy of the page in a frame of the given width: Chromium's own window is never narrower than 500 px."""
    text = page.read_text(encoding="utf-8")
    assert POLICY.search(text), "the page forbids itself scripts and the network"
    (folder / "page.html").write_text(POLICY.sub("", text).replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    dom = _run(folder, scheme, "--dump-dom", (folder / "frame.html").as_uri()).stdout
    seen = re.search(r'data-seen="([^"]*)"', dom)
    assert seen, f"the page did not load: {dom[:300]}"
    return View(**json.loads(unescape(seen[1])))


def console_of(page: Path, folder: Path) -> list[str]:
    """Open the page as it is, its policy in force, and return what it writes to the console."""
    lines = _run(folder, "--dump-dom", page.as_uri()).stderr.splitlines()
    return [line for line in lines if ":CONSOLE" in line]


def print_to_pdf(page: Path, folder: Path) -> bytes:
    """Return the page as it is printed."""
    _run(folder, "--no-pdf-header-footer", f"--print-to-pdf={folder / 'page.pdf'}", page.as_uri())
    return (folder / "page.pdf").read_bytes()


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    line = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
