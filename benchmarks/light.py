"""What the light part costs: its size once installed, and the time and memory of ``tskd predict`` on one image.

    python benchmarks/light.py MODEL --environment FOLDER

makes an environment in FOLDER (kept; left as it is where it exists), installs this repository into it without any
extra, and starts ``tskd predict MODEL IMAGE`` in it again and again. Needs a package registry once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
NOT_OURS = ("pip", "setuptools", "pkg_resources", "_distutils_hack")
"""What every new environment has before anything is installed."""


def make_environment(folder: Path) -> None:
    """Make an environment as the documentation says, with the versions of constraints.txt."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    constraint = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *constraint, ROOT], check=True)


def installed_megabytes(folder: Path) -> tuple[float, float]:
    """Return the size of all installed packages in MB of 10^6 bytes, and how much of it is compiled bytecode."""
    site = next((folder / "lib").glob("python3*")) / "site-packages"
    packages = [one for one in site.iterdir() if one.name.split("-")[0] not in NOT_OURS]
    files = [file for one in packages for file in ([one] if one.is_file() else one.rglob("*")) if file.is_file()]
    sizes = {file: file.stat().st_size for file in files}
    return sum(sizes.values()) / 1e6, sum(size for file, size in sizes.items() if file.suffix == ".pyc") / 1e6


def draw(path: Path, side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def measure(line: list[str]) -> dict[str, float]:
    """Run a command and return its wall time, its processor time and its peak memory."""
    began = time.perf_counter()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(line)} failed")
    return {
        "wall_s": time.perf_counter() - began,
        "processor_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss * 1024 / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--environment", type=Path, required=True)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if not options.environment.exists():
        make_environment(options.environment)
    size, bytecode = installed_megabytes(options.environment)
    tskd = str(options.environment / "bin" / "tskd")
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        draw(image, options.side)
        masks = str(Path(folder) / "masks")
        line = [tskd, "predict", str(options.model), str(image), "--out", masks, "--overwrite"]
        rounds = [measure(line) for _ in range(options.rounds + 1)][1:]  # the first reads libraries from the disk
    told = {name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]}
    least = round(min(one["wall_s"] for one in rounds), 2)
    print(
        json.dumps(
            {
                "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
                "installed_mb": round(size),
                "of_it_bytecode_mb": round(bytecode),
                **told,
                "least_wall_s": least,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
