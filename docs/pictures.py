"""Draw the pictures of the documentation from the report of a run: sections as a browser shows them, as WebP.

tskd run quick --out out/pictures --set data.phantom.train=120 --set data.labels=20 --set distill.steps=100 \\
    --set control.steps=100
python docs/pictures.py out/pictures

The picture of the README, from a demonstration (tskd demo --out out/demo):

python docs/pictures.py --demo out/demo
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

IMAGES = Path(__file__).parent / "images"
SECTIONS = {"report-scores": "scores", "report-overlays": "overlays", "report-failures": "failures"}
"""Name of a picture -> id of the section of the report."""
WIDTH, HEIGHT, MOST = 1000, 2600, 1150
"""Of the window, and what is kept of a section's height, in pixels."""
RANKS, GAP = ("worst", "median", "best"), 16
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def main(run: Path) -> None:
    """Write one picture a section into ``docs/images``."""
    page = POLICY.sub("", (run / "report.html").read_text(encoding="utf-8"))
    for name, section in SECTIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            shown = trimmed(photograph(alone(page, section), Path(folder)))
        shown.save(IMAGES / f"{name}.webp", quality=80, method=6)
        print(f"{name}: {shown.width} x {shown.height}, {(IMAGES / f'{name}.webp').stat().st_size // 1000} kB")


def draw_demo(run: Path) -> None:
    """Write the first of the student's worst, median and best test images side by side into ``docs/images``."""
    student = json.loads((run / "run.json").read_text(encoding="utf-8"))["evaluations"]["student"]
    found = [next(iter(sorted((run / "artifacts" / student / "overlays").glob(f"*_{rank}.png")))) for rank in RANKS]
    panels = [Image.open(path) for path in found]
    width, height = panels[0].size
    whole = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height), "white")
    for place, panel in enumerate(panels):
        whole.paste(panel, (place * (width + GAP), 0))
    whole.save(IMAGES / "demo.png", optimize=True)
    print(f"demo: {whole.width} x {whole.height}")


def alone(page: str, section: str) -> str:
    """Return the page with everything hidden but one section."""
    assert f'id="{section}"' in page, f"the report has no section {section}"
    style = f"<style>body header, body nav, body footer, section:not(#{section}) {{ display: none !important }}</style>"
    return page.replace("</head>", f"{style}</head>")


def photograph(page: str, folder: Path) -> Image.Image:
    """Return what Chromium shows of a page, in light colours."""
    chromium = next(found for one in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(one)))
    (folder / "page.html").write_text(page, encoding="utf-8")
    line = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}",
        "--blink-settings=preferredColorScheme=1", f"--user-data-dir={folder / 'profile'}",
        f"--screenshot={folder / 'page.png'}", (folder / "page.html").as_uri(),
    ]  # fmt: skip
    subprocess.run(line, check=True, capture_output=True, timeout=120)
    with Image.open(folder / "page.png") as image:
        return image.convert("RGB")


def trimmed(image: Image.Image) -> Image.Image:
    """Return a picture without the empty rim around what it shows."""
    paper = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    left, top, right, bottom = ImageChops.difference(image, paper).getbbox() or (0, 0, *image.size)
    return image.crop((max(left - 8, 0), max(top - 8, 0), min(right + 8, WIDTH), min(bottom + 8, top + MOST)))


if __name__ == "__main__":
    draw_demo(Path(sys.argv[2])) if sys.argv[1] == "--demo" else main(Path(sys.argv[1]))
