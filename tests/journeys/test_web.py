"""The page of ``tskd export --web`` on a phone's screen: the masks of ``predict``, without a network, nothing sent."""

from __future__ import annotations

import functools
import http.server
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.journeys.browser import needs_chromium
from tests.journeys.devtools import SECONDS, Page, opened
from tskd.deploy import web
from tskd.deploy.bundle import Bundle, open_bundle, write_sums
from tskd.deploy.network_file import ask
from tskd.deploy.onnx_export import Deployed, Doubts, Familiar, write_onnx
from tskd.deploy.outcome import Outcome, Prediction
from tskd.deploy.predict import PredictOptions, predict_paths
from tskd.models.timm_segmenter import TimmSegmenter

CLASSES = ("cyst", "duct")
DIFFERENT = 0.001
"""Largest share of pixels whose class may differ: two builds of onnxruntime round sums in another order."""
READY = "document.querySelector('#status')?.textContent === 'Ready.' && !document.body.dataset.before"
needs_runtime = pytest.mark.skipif(
    not (web.WEB / "node_modules/onnxruntime-web/dist").is_dir(),
    reason="onnxruntime-web is not there, and tests download nothing: `make web` fetches it",
)
pytestmark = [needs_chromium, needs_runtime]


@dataclass
class Server:
    """Files over HTTP on this machine, and what was asked for."""

    folder: Path
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                asked.append(self.path)

        handler = functools.partial(Handler, directory=str(self.folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network of every output, which answers several classes."""
    torch.manual_seed(0)
    segmenter = TimmSegmenter("test_efficientnet", "pyramid", classes=len(CLASSES), image_size=64).eval()
    segmenter.decoder.head.weight.data.mul_(20)  # random logits near 0 would make one class of every pixel
    features = segmenter.small_output(torch.zeros(1, 3, 64, 64)).features[-1].shape[1]
    one = torch.tensor(1.0)
    familiar = Familiar(torch.zeros(features), torch.eye(features)[:2], torch.ones(2), one, 1000 * one)
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    write_onnx(Deployed(segmenter, Doubts(1.5, familiar)), path)
    return path


def write_site(folder: Path, network: Path, *, window: Sequence[float] | None, look_below: float) -> Bundle:
    """Write a bundle and its page, ``folder/model`` and ``folder/site``."""
    model = folder / "model"
    model.mkdir(parents=True)
    described = {"classes": CLASSES, "input": {"window": window}, "doubt": {"look_below": look_below}}
    (model / "model.json").write_text(json.dumps(described))
    (model / "model.onnx").write_bytes(network.read_bytes())
    (model / "MODEL_CARD.md").write_text(f"# Card\n\n| {'wide ' * 30}|\n|---|\n| x |\n\n```\n{'long ' * 60}\n```\n")
    write_sums(model)
    bundle = open_bundle(model)
    web.write_web(bundle, folder / "site")
    return bundle


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.stop()


def picture(height: int = 90, width: int = 130) -> np.ndarray:
    """Return smooth colours, as a photograph has them."""
    grid = np.random.default_rng(3).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def write_images(folder: Path) -> list[Path]:
    """Write what phones, cameras and programs write: turned, compressed, with transparency and a gamma of their own."""
    folder.mkdir()
    shown = Image.fromarray(picture())
    turned = [Image.Exif() for _ in range(9)]
    for orientation, exif in enumerate(turned):
        exif[0x0112] = orientation
    alpha = np.dstack([picture(), np.indices((90, 130))[1].clip(0, 120).astype(np.uint8)])
    linear = PngInfo()
    linear.add(b"gAMA", (100_000).to_bytes(4, "big"))
    shown.save(folder / "plain.png", pnginfo=linear)
    shown.save(folder / "turned6.png", exif=turned[6])
    shown.save(folder / "turned5.webp", exif=turned[5], lossless=True)
    shown.save(folder / "turned8.jpg", exif=turned[8], quality=90)
    shown.convert("L").point(lambda value: 255 * (value > 127), "1").save(folder / "binary.png")
    Image.fromarray(alpha).save(folder / "transparent.png", exif=turned[7])
    return sorted(folder.iterdir())


def expected(bundle: Bundle, images: list[Path], out: Path) -> dict[str, tuple[Prediction, np.ndarray]]:
    """Return what ``predict`` says and writes of each image, by its name."""
    outcome = Outcome(())
    predict_paths(bundle, images, out, options=PredictOptions(threads=1), outcome=outcome)
    outcome.require_complete()
    return {one.source.name: (one, np.asarray(Image.open(out / one.output))) for one in outcome.predictions}


def segment(page: Page, image: Path, downloads: Path) -> np.ndarray:
    """Choose an image, and return the mask that the page gives to download."""
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    page.choose("#file", image)
    page.until(f"document.querySelector('#status').textContent.startsWith('{image.name}, ')")
    page.until("!document.querySelector('#file').disabled")
    page.ask("document.querySelector('#download').click()")
    written = downloads / f"{image.stem}.mask.png"
    ends = time.monotonic() + SECONDS
    while not written.exists():
        assert time.monotonic() < ends, f"{written.name} was not downloaded"
        time.sleep(0.02)
    with Image.open(written) as mask:
        assert mask.mode == "L"
        return np.asarray(mask)


def compare(page: Page, images: list[Path], told: dict[str, tuple[Prediction, np.ndarray]], downloads: Path) -> None:
    """Assert that the page finds, for each image, what ``predict`` finds."""
    for image in images:
        mask = segment(page, image, downloads)
        prediction, wanted = told[image.name]
        assert mask.shape == wanted.shape, image.name
        assert (mask != wanted).mean() <= DIFFERENT, image.name
        areas = page.ask("[...document.querySelectorAll('#areas tr')].map(row => row.cells[1].textContent)")
        assert areas == [f"{np.count_nonzero(mask == label):,}" for label in (1, 2)]
        sure = float(page.ask("document.querySelector('#confidence').textContent").split(":")[1].removesuffix(" %"))
        assert prediction.confidence is not None
        assert sure == pytest.approx(100 * prediction.confidence, abs=0.1)


@pytest.mark.slow
def test_masks_are_those_of_predict_and_come_without_a_network(network: Path, server: Server, tmp_path: Path) -> None:
    """Red where orientation, alpha, profiles or doubt are read otherwise than by ``predict``, or a file is not kept."""
    bundle = write_site(tmp_path / "a place/of mine", network, window=None, look_below=1.0)
    images = write_images(tmp_path / "images")
    told = expected(bundle, images, tmp_path / "out")
    assert len(np.unique(told["plain.png"][1])) > 1, "a mask of one class would be no test"
    with opened(f"{server.url}a%20place/of%20mine/site/", width=390, height=844) as page:
        page.call("Network.enable")
        page.until(READY)
        compare(page, images, told, tmp_path / "with")
        remarks = page.ask("[...document.querySelectorAll('#remarks li')].map(one => one.textContent)")
        assert [one for one in remarks if "the model is unsure" in one], "every answer is below the limit of 1"
        page.ask("document.querySelector('#card').open = true")
        assert page.ask("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        unnamed = "[...document.querySelectorAll('input, a, canvas, figure')].filter(one => !one.closest('figure') && "
        unnamed += "!(one.labels?.length || one.textContent.trim())).length"
        assert page.ask(unnamed) == 0
        asked = {path.partition("?")[0] for path in server.asked}
        server.stop()
        page.ask("document.body.dataset.before = 'the page that is left'")
        page.call("Page.reload")
        page.until(READY)
        assert "works without a network" in page.ask("document.body.innerText")
        compare(page, images[:1], told, tmp_path / "without")
        sent = [one["params"]["request"]["url"] for one in page.events if one["method"] == "Network.requestWillBeSent"]
        assert not [url for url in sent if not url.startswith((server.url, "blob:", "data:"))]
        assert not [one for one in page.complaints() if "Content Security Policy" in one or '"error"' in one]
    assert all(path.startswith("/a%20place/of%20mine/site/") for path in asked)


@pytest.mark.slow
def test_windows_are_applied_and_what_is_no_whole_image_is_refused(
    network: Path, server: Server, tmp_path: Path
) -> None:
    """Red where a model with a window sees other levels than in ``predict``, or half a picture gets a mask."""
    bundle = write_site(tmp_path / "windowed", network, window=(50, 300), look_below=0.0)
    images = write_images(tmp_path / "images")
    whole = [one for one in images if one.name in ("plain.png", "binary.png", "turned8.jpg")]
    told = expected(bundle, whole, tmp_path / "out")
    assert (ask(bundle.session(1), picture()).classes != told["plain.png"][1]).any(), "the window matters here"
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in ("plain.png", "turned8.jpg", "turned5.webp"):
        content = (tmp_path / "images" / name).read_bytes()
        (bad / f"cut_{name}").write_bytes(content[: len(content) * 2 // 3])
    (bad / "text.png").write_text("no image")
    Image.fromarray(picture()[..., 0].astype(np.uint16) * 257).save(bad / "deep.png")
    why = {"cut_plain.png": "cut off", "cut_turned8.jpg": "cut off", "cut_turned5.webp": "cut off",
           "text.png": "not an image that this browser can read", "deep.png": "16 bits"}  # fmt: skip
    elsewhere = Server(bad)
    with opened(f"{server.url}windowed/site/index.html", width=390, height=844) as page:
        page.until(READY)
        for name, said in why.items():
            page.choose("#file", bad / name)
            page.until(f"document.querySelector('#problem').textContent.startsWith('{name}: ')")
            assert said in page.ask("document.querySelector('#problem').textContent")
            page.until("!document.querySelector('#file').disabled")
            assert page.ask("document.querySelector('#result').hidden"), "an old mask would be taken for this image's"
        compare(page, whole, told, tmp_path / "downloads")
        leak = f"fetch('{elsewhere.url}text.png', {{mode: 'no-cors'}}).then(() => 'sent', () => 'refused')"
        assert page.ask(leak) == "refused"
        headers = "fetch('worker.js').then(answer => answer.headers.get('content-security-policy'))"
        assert page.ask(headers) == web.POLICY, "the page's own policy does not bind a worker"
    elsewhere.stop()
    assert elsewhere.asked == []
