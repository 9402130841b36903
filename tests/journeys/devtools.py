"""Chromium without a window, driven through its own pipe (the DevTools protocol): what a person does on a page."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.journeys.browser import CHROMIUM

_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe")  # fmt: skip
_EXEC = (  # Chromium reads commands from descriptor 3 and writes answers to 4
    "import fcntl, os, sys; ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 20) for end in sys.argv[1:3]];"
    "os.dup2(ends[0], 3); os.dup2(ends[1], 4); os.execv(sys.argv[3], sys.argv[3:])"
)
SECONDS = 60.0


class Page:
    """One page."""

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers = commands, answers
        self.number, self.session, self.rest = 0, None, b""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come before it are kept."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": params}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") != self.number:
                self.events.append(message)
                continue
            assert "error" not in message, message
            return dict(message["result"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            block = os.read(self.answers, 2**16)
            assert block, "Chromium ended"
            self.rest += block
        message, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(message))

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """Be a window of so many CSS pixels in a light or a dark room."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def ask(self, script: str) -> Any:
        """Return what an expression is, a promise awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait for an expression to be true."""
        ends = time.monotonic() + SECONDS
        while not (found := self.ask(f"!!({script})")):
            assert time.monotonic() < ends, f"never true: {script}; {self.ask('document.body.innerText')}"
            time.sleep(0.05)
        return found

    def choose(self, selector: str, path: Path) -> None:
        """Put a file into a file field."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def drag(self, *places: tuple[float, float]) -> None:
        """Press the mouse at the first place, move it over the others and let go."""
        for number, (x, y) in enumerate(places):
            kind = "mousePressed" if number == 0 else "mouseMoved"
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        x, y = places[-1]
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)

    def picture(self, path: Path) -> None:
        """Save the whole page as PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """Return errors of scripts, and what the browser logged, such as a breach of the page's policy."""
        return [
            json.dumps(event["params"])
            for event in self.events
            if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        ]


@contextmanager
def opened(url: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> Iterator[Page]:
    """Yield a page that has loaded."""
    assert CHROMIUM is not None
    (read, commands), (answers, write) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        line = [sys.executable, "-c", _EXEC, str(read), str(write), CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(line, pass_fds=(read, write), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        try:
            page = Page(commands, answers)
            page.size(width, height, dark=dark)
            page.call("Page.navigate", url=url)
            page.until("document.readyState === 'complete'")
            yield page
        finally:
            os.close(commands)
            os.close(answers)
            process.terminate()
            process.wait()
