"""``tskd serve`` under load: clients that send images, a tenth of them hostile; does it crash, grow or leave anything?

Run: ``python benchmarks/serve.py MODEL --requests 2000 --clients 8`` (a bundle; images are made up, 256 x 256).
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 256
PAUSE = 0.05
"""Seconds before a client that was told 503 asks again: less than Retry-After says, to keep the queue full."""


def main() -> None:
    """Run the load, kill a second server in the middle of it, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--hostile", type=float, default=0.1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        told = under_load(given, Path(scratch))
        told["left_after_kill"] = killed(given, Path(scratch))
    print(json.dumps(told, indent=2))


@dataclass
class Server:
    """A server in a process of its own, whose temporary files would be in ``scratch``."""

    process: subprocess.Popen[str]
    port: int

    @classmethod
    def start(cls, model: Path, scratch: Path) -> Server:
        line = [sys.executable, "-m", "tskd.cli", "serve", str(model), "--port", "0", "--threads", "1"]
        told = {**os.environ, "TMPDIR": str(scratch)}
        process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=told)
        assert process.stderr is not None
        found = re.search(r":(\d+) ", process.stderr.readline())
        assert found, process.stderr.read()
        return cls(process, int(found[1]))

    def memory(self) -> float:
        """Return the resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found
        return int(found[1]) / 1024


@dataclass
class Load:
    """What the clients share."""

    left: int
    hostile: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    seconds: list[float] = field(default_factory=list)
    """Of each good image, waiting for its turn included."""
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def take(self) -> int | None:
        with self.lock:
            self.left -= 1
            return None if self.left < 0 else self.left


def under_load(given: argparse.Namespace, scratch: Path) -> dict[str, object]:
    server = Server.start(given.model, scratch)
    warm = Load(20, 0)
    run_clients(server.port, warm, 1)
    load = Load(given.requests, given.hostile)
    memory = [server.memory()]
    began = time.monotonic()
    watched = threading.Thread(target=watch, args=(server, load, memory))
    watched.start()
    run_clients(server.port, load, given.clients)
    seconds = time.monotonic() - began
    watched.join()
    alive = server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(timeout=60)
    half = len(memory) // 2
    return {
        "requests": given.requests, "clients": given.clients, "hostile": given.hostile, "seconds": round(seconds, 1),
        "alive_at_the_end": alive, "exit_code": code, "statuses": dict(load.statuses.most_common()),
        "unexpected": load.wrong[:5], "p50_s": percentile(load.seconds, 50), "p95_s": percentile(load.seconds, 95),
        "memory_mb": {"before": round(memory[0]), "first_half_most": round(max(memory[: half or 1])),
                      "second_half_most": round(max(memory[half:])), "end": round(memory[-1])},
        "left": sorted(path.name for path in scratch.iterdir()),
    }  # fmt: skip


def killed(given: argparse.Namespace, scratch: Path) -> list[str]:
    """Return what a server that was killed in the middle of its work leaves behind."""
    server = Server.start(given.model, scratch)
    load = Load(10**6, given.hostile)
    threads = [threading.Thread(target=client, args=(server.port, load, seed), daemon=True) for seed in range(4)]
    for one in threads:
        one.start()
    time.sleep(1.5)  # the first answers come after a tenth of a second
    server.process.kill()
    server.process.wait()
    load.left = 0
    return sorted(path.name for path in scratch.iterdir())


def watch(server: Server, load: Load, memory: list[float]) -> None:
    while load.left > 0 and server.process.poll() is None:
        memory.append(server.memory())
        time.sleep(0.5)


def run_clients(port: int, load: Load, count: int) -> None:
    threads = [threading.Thread(target=client, args=(port, load, seed)) for seed in range(count)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


def client(port: int, load: Load, seed: int) -> None:
    """Send one image after another; come again where the queue is full."""
    random = np.random.default_rng(seed)
    good = [image(random) for _ in range(4)]
    bad = hostile(good[0][1])
    while (number := load.take()) is not None:
        is_hostile = random.random() < load.hostile
        name, content = bad[number % len(bad)] if is_hostile else good[number % len(good)]
        began = time.monotonic()
        try:
            while (status := send(port, name, content)) == 503:
                with load.lock:
                    load.statuses["503, asked again"] += 1
                time.sleep(PAUSE)
        except OSError as error:
            status = -1 if is_hostile else 0
            if not is_hostile:
                load.wrong.append(f"{type(error).__name__} for {name}")
        with load.lock:
            load.statuses[f"{'hostile' if is_hostile else 'good'} {status}"] += 1
            if not is_hostile:
                load.seconds.append(time.monotonic() - began)
            if (status == 200) == is_hostile or status >= 500:
                load.wrong.append(f"{status} for {name}")


def image(random: np.random.Generator) -> tuple[str, bytes]:
    content = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(content, "JPEG", quality=90)
    return "a.jpg", content.getvalue()


def hostile(good: bytes) -> list[tuple[str, bytes]]:
    """Return uploads that are cut short, empty, mislabelled, of other types, or lead elsewhere by their names."""
    return [
        ("cut.jpg", good[: len(good) // 3]), ("empty.png", b""), ("noise.dcm", os.urandom(5000)),
        ("a.zip", b"PK\x03\x04" + good),
        ("../../a.png", good), ("a.exe", b"MZ" + bytes(4000)), ("a.nii.gz", b"\x1f\x8b" + os.urandom(4000)),
        ("head.png", b"\x89PNG\r\n\x1a\n" + os.urandom(3000)), ("a.tif", b"II*\0" + os.urandom(3000)),
    ]  # fmt: skip


def send(port: int, name: str, content: bytes) -> int:
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(
            "POST", "/v1/segment", head + content + b"\r\n--b--\r\n",
            {"Content-Type": "multipart/form-data; boundary=b", "Accept": "image/png"},
        )  # fmt: skip
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def percentile(values: list[float], share: float) -> float:
    return round(float(np.percentile(values, share)), 3)


if __name__ == "__main__":
    main()
