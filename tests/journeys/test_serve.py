"""``tskd serve`` as people meet it: in a browser, from a terminal, and when it is ended."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from tests.journeys.browser import needs_chromium
from tests.journeys.devtools import Page, opened
from tests.journeys.isolated import listen_to, needs_namespaces
from tests.journeys.test_nothing_leaves import left_in
from tests.serving import as_png, picture, running, truth, write_bundle
from tskd.deploy.bundle import open_bundle
from tskd.deploy.predict import predict_paths

MASK = "import('/static/app.js').then(page => Array.from(page.state.masks.get(page.state.slice)))"
ASKING = """
import subprocess, sys, urllib.request
line = [sys.executable, "-m", "tskd.cli", "serve", sys.argv[1], "--port", "8907"]
server = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
assert "127.0.0.1" in server.stderr.readline()
body = (b'--b\\r\\nContent-Disposition: form-data; name="file"; filename="a.png"\\r\\n\\r\\n'
        + open(sys.argv[2], "rb").read() + b"\\r\\n--b--\\r\\n")
asked = urllib.request.Request("http://127.0.0.1:8907/v1/segment", body,
                               {"Content-Type": "multipart/form-data; boundary=b"})
assert b"lesion" in urllib.request.urlopen(asked).read()
server.terminate()
said = server.stderr.read()
assert server.wait() == 130, said
assert said == "stopped; nothing is kept but saved corrections\\n", said
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server with corrections, and the folder around it."""
    folder = tmp_path_factory.mktemp("site")
    write_bundle(folder / "model", dataset="phantoms/oral_ulcer", card="# A card\n\n| n |\n|---:|\n| 1 |\n")
    with running(folder / "model", "--corrections", folder / "corrected") as (url, _):
        yield url, folder


def send_to(page: Page, path: Path) -> None:
    page.until("document.querySelector('#examples button')")
    page.choose("#file", path)
    page.until("document.getElementById('status').textContent.startsWith('Done')")


@needs_chromium
@pytest.mark.slow
def test_a_file_is_opened_its_mask_is_that_of_predict_corrected_and_saved(
    site: tuple[str, Path], tmp_path: Path
) -> None:
    url, folder = site
    pixels = picture(120, 160)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    predict_paths(open_bundle(folder / "model"), [path], tmp_path / "out")
    expected = np.asarray(Image.open(tmp_path / "out/a.png"))
    with opened(url) as page:
        send_to(page, path)
        np.testing.assert_array_equal(np.reshape(page.ask(MASK), (120, 160)), expected)
        before = page.ask("document.getElementById('canvas').toDataURL()")
        page.ask("document.querySelector('[name=tool][value=brush]').click()")
        x, y = page.ask(
            "(() => { const box = document.getElementById('canvas').getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        page.drag((x, y), (x + 60, y))
        drawn = np.reshape(page.ask(MASK), (120, 160))
        assert (drawn != expected).sum() > 100, "the brush paints"
        assert page.ask("document.getElementById('canvas').toDataURL()") != before, "and shows it"
        page.ask("document.getElementById('undo').click()")
        np.testing.assert_array_equal(np.reshape(page.ask(MASK), (120, 160)), expected)
        page.drag((x, y), (x + 60, y))
        page.ask("document.getElementById('save').click()")
        page.until("document.getElementById('status').textContent.startsWith('Saved one mask')")
        assert page.complaints() == []
    (mask,) = (folder / "corrected/masks").iterdir()
    np.testing.assert_array_equal(np.asarray(Image.open(mask)), 255 * drawn)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "corrected/images" / mask.name)), pixels)


@needs_chromium
@pytest.mark.slow
def test_a_volume_on_a_phone_is_scrolled_and_windowed_without_scrolling_sideways(
    site: tuple[str, Path], tmp_path: Path
) -> None:
    values = np.stack([picture(60, 50, seed)[..., 0].astype(np.int16) for seed in range(3)], axis=-1) * 4
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1, 2, 1])), tmp_path / "v.nii.gz")
    with opened(site[0], width=390, height=844, dark=True) as page:
        send_to(page, tmp_path / "v.nii.gz")
        assert page.ask("document.getElementById('canvas').getClientRects().length") == 1
        assert page.ask("document.documentElement.scrollWidth") == page.ask("innerWidth") == 390
        assert "ml" in page.ask("document.getElementById('classes').textContent")
        page.ask("import('/static/app.js').then(page => page.showSlice(2))")
        assert page.ask("document.getElementById('slice-told').textContent") == "3 of 3"
        shown = page.ask("document.getElementById('canvas').toDataURL()")
        page.ask("const low = document.getElementById('low'); low.value = 500; low.dispatchEvent(new Event('input'))")
        page.until(f"document.getElementById('canvas').toDataURL() !== {json.dumps(shown)}")
        assert page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 28)"
        unnamed = page.ask(
            "[...document.querySelectorAll('input, select, button')].filter(one => one.getClientRects().length && "
            "!one.labels?.length && !one.getAttribute('aria-label') && !one.textContent.trim()).map(one => one.id)"
        )
        assert unnamed == [], "every control has a name for a screen reader"
        assert page.complaints() == []


@needs_chromium
@pytest.mark.slow
def test_a_file_that_is_dropped_is_segmented_and_a_wrong_one_is_explained(site: tuple[str, Path]) -> None:
    drop = (
        "(content => {{ const data = new DataTransfer(); data.items.add(new File([new Uint8Array(content)], 'a.png'));"
        "dispatchEvent(new DragEvent('drop', {{dataTransfer: data, bubbles: true, cancelable: true}})); }})({})"
    )
    with opened(site[0]) as page:
        page.until("document.querySelector('#examples button')")
        page.ask(drop.format([1, 2, 3]))
        page.until("document.getElementById('problem').textContent.includes('no type that is read here')")
        pixels = picture()
        page.ask(drop.format(list(as_png(pixels))))
        page.until("document.getElementById('status').textContent.startsWith('Done')")
        np.testing.assert_array_equal(np.reshape(page.ask(MASK), truth(pixels).shape), truth(pixels))
        assert page.ask("document.getElementById('problem').textContent") == ""


@needs_namespaces
@pytest.mark.slow
def test_serving_asks_no_one_leaves_nothing_and_ends_when_told(tmp_path: Path) -> None:
    write_bundle(tmp_path / "model")
    Image.fromarray(picture()).save(tmp_path / "a.png")
    heard = listen_to([sys.executable, "-c", ASKING, tmp_path / "model", tmp_path / "a.png"], tmp_path / "home")
    assert heard.code == 0, heard.said
    assert heard.requests == []
    assert left_in(tmp_path / "home") == set()


@pytest.mark.slow
def test_a_server_that_is_killed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the middle of its work: no temporary file, no half-written correction; and torch was never loaded."""
    write_bundle(tmp_path / "model")
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    with running(tmp_path / "model", "--corrections", tmp_path / "corrected") as (url, process):
        assert urllib.request.urlopen(f"{url}/healthz").read() == b'{"status":"ok"}'
        maps = Path(f"/proc/{process.pid}/maps")
        if maps.exists():
            assert "libtorch" not in maps.read_text()
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    assert list(scratch.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"model", "tmp"}
