"""What one GPU does with tskd: its tests, SAM, diffusion, distillation, a whole run, shared cards, two processes.

    python benchmarks/gpu.py --out out/gpu_figures --minutes 9
    python benchmarks/gpu.py --out out/tiny --tiny          # the same with tiny networks on the CPU: does it run?

Nothing is fetched; SAM has random weights, which cost the same. Each part runs in a process of its own and leaves
``OUT/<part>.json``; a part that is there is not measured again, so that the same command goes on where the time ended
or a part failed (``real`` keeps each run that ended). ``--only`` picks parts, ``--data FOLDER`` adds the comparison
``recipes/compare/real.yaml`` on data of your own. The tables printed at the end hold all parts that are there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_parts
from gpu_parts import PARTS, Scale
from measure import as_table

from tskd.machine.disk import write_json


def main() -> None:
    """Measure what is missing, print what is there; exit 1 where a part failed, 0 where only the time ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    parser.add_argument("--minutes", type=float, default=9.0, help="no part begins or goes on after this time")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to measure")
    parser.add_argument("--data", nargs="+", default=[], help="data folders for the part real, which needs them")
    parser.add_argument("--tiny", action="store_true", help="tiny networks on the CPU, for a test of this program")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    scale = replace(gpu_parts.TINY if options.tiny else gpu_parts.FULL, data=tuple(options.data))
    names = options.only or [name for name in PARTS if name != "real" or options.data]
    if "real" in names and not options.data:
        parser.error("the part real compares models on your images: --data FOLDER")
    end = time.monotonic() + 60 * options.minutes
    notes = {name: note for name in names if (note := measure(name, scale, options.out.resolve(), end))}
    found = {name: json.loads(path.read_text()) for name in PARTS if (path := options.out / f"{name}.json").is_file()}
    if options.json:
        print(json.dumps({"parts": found, "missing": notes}))
    else:
        print("\n\n".join(_section(name, part) for name, part in found.items()))
        print("\n" + "\n".join(f"{name}: {note}" for name, note in notes.items()))
    sys.exit(any(note.startswith("failed") for note in notes.values()))


def measure(name: str, scale: Scale, out: Path, end: float) -> str:
    """Measure a part in a process of its own, which must not outlast ``end``; return why there is no result, or ''."""
    path = out / f"{name}.json"
    if path.is_file():
        return ""
    if time.monotonic() >= end:
        return "not begun: the time is over, the same command goes on"
    print(f"{name} ...", file=sys.stderr, flush=True)
    # forked, so that torch is imported once; nothing here has touched the GPU or started a thread
    process = multiprocessing.get_context("fork").Process(target=_work, args=(name, scale, path))
    process.start()
    process.join(end - time.monotonic())
    if process.is_alive():
        os.killpg(process.pid, signal.SIGTERM)  # with the commands that it started
        process.join()
        return "stopped: the time is over, the same command begins this part anew"
    return "" if path.is_file() else f"failed (exit {process.exitcode}); what it said is above"


def _work(name: str, scale: Scale, path: Path) -> None:
    os.setsid()
    began = time.perf_counter()
    rows = PARTS[name](scale, path.parent)
    seconds = round(time.perf_counter() - began, 1)
    write_json(path, {"machine": gpu_parts.device_line(scale), "seconds": seconds, "rows": rows})


def _section(name: str, part: dict[str, Any]) -> str:
    return f"## {name}\n\n{part['machine']}; {part['seconds']:.0f} s\n\n{as_table(part['rows'])}"


if __name__ == "__main__":
    main()
