"""`predict` answers by tiles where it is told to, and only larger images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tskd as api
from tests.serving import write_bundle
from tskd.cli import main
from tskd.console import Advance
from tskd.deploy import predict
from tskd.deploy.bundle import Bundle
from tskd.deploy.network_file import ask
from tskd.errors import UserError


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str, str]:
    """A bundle, an image of 50 x 70 px in a folder, a folder for masks."""
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (70, 50), np.uint8)
    Image.fromarray(noise).save(tmp_path / "images/large.png")
    return str(write_bundle(tmp_path / "model")), str(tmp_path / "images"), str(tmp_path / "masks")


def test_how_far_a_large_image_is_shows_by_its_tiles(
    folders: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slide of thousands of tiles said nothing until it was done."""
    bundle, images, masks = folders
    said: list[tuple[float, str]] = []

    @contextmanager
    def progress(label: str, total: int) -> Iterator[Advance]:
        yield lambda done, note="": said.append((done, note))

    monkeypatch.setattr(predict, "progress", progress)
    with pytest.raises(SystemExit) as end:
        main(["predict", bundle, images, "--out", masks, "--tile", "32"])
    assert not end.value.code
    assert [note for _, note in said if note] == [f"tile {number} of 12" for number in range(1, 13)]
    assert [done for done, note in said if note] == pytest.approx([number / 12 for number in range(1, 13)])
    assert sorted(done for done, _ in said) == [done for done, _ in said], "it never goes back"


@pytest.mark.parametrize(("tile", "looks"), [(None, 12), ("0", 1), ("64", 2)])
def test_a_model_of_tiles_can_be_asked_about_whole_images(
    folders: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch, tile: str | None, looks: int
) -> None:
    bundle, images, masks = folders
    asked: list[object] = []
    monkeypatch.setattr(predict, "ask", lambda session, image: asked.append(image) or ask(session, image))
    monkeypatch.setattr(Bundle, "tile", 32)
    with pytest.raises(SystemExit) as end:
        main(["predict", bundle, images, "--out", masks, *([] if tile is None else ["--tile", tile])])
    assert not end.value.code
    assert len(asked) == looks


def test_tiles_that_show_nothing_are_refused(folders: tuple[str, str, str], capsys: pytest.CaptureFixture[str]) -> None:
    bundle, images, masks = folders
    with pytest.raises(SystemExit) as end:
        main(["predict", bundle, images, "--out", masks, "--tile", "8"])
    assert end.value.code == 2
    assert "tiles of 8 px: give 16 px or more, or 0" in capsys.readouterr().err
    with pytest.raises(UserError, match="tiles of 8 px"):
        api.load(bundle).predict(Path(images) / "large.png", tile=8)


def test_predict_asks_by_tiles_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red where the option does not reach the network, or the mask of tiles is put together in another place."""
    bundle, images = write_bundle(tmp_path / "model"), tmp_path / "images"
    images.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (70, 50), np.uint8)
    Image.fromarray(values).save(images / "large.png")
    Image.fromarray(values[:20, :30]).save(images / "small.png")
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(predict, "ask", lambda session, image: asked.append(image.shape[:2]) or ask(session, image))
    with pytest.raises(SystemExit) as end:
        main(["predict", str(bundle), str(images), "--out", str(tmp_path / "masks"), "--tile", "32"])
    assert not end.value.code
    assert sorted(asked) == [(20, 30), *[(32, 32)] * 12]
    mask = np.asarray(Image.open(tmp_path / "masks" / "large.png"))
    np.testing.assert_array_equal(mask[values != 127], (values > 127)[values != 127])
