"""`predict` answers by tiles where it is told to, and only larger images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.serving import write_bundle
from tskd.cli import main
from tskd.deploy import predict
from tskd.deploy.network_file import ask


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
