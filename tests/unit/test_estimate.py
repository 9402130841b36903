from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.made_up import make_prepared
from tskd.comparison.estimate import SECONDS_AN_IMAGE, SECONDS_WITHOUT_STEPS, Estimator
from tskd.comparison.plan import Part
from tskd.data.prepared import PARTS
from tskd.machine.disk import write_json

TRAINING = {"steps": 100, "batch_size": 8}


def made(
    root: Path, name: str, config: Mapping[str, Any], seconds: float, *, data: str = "", used: Mapping[str, float] = {}
) -> None:
    """Write the manifest of a finished artifact that looked at those data."""
    folder = root / name
    folder.mkdir(parents=True)
    costs = {part: {"seconds": each, "peak_memory_mb": 1.0} for part, each in used.items()}
    stage = name.rpartition("-")[0]
    manifest = {"stage": stage, "config": config, "seconds": seconds, "peak_memory_mb": 1.0, "used": costs}
    manifest["inputs"] = {"data": data}
    write_json(folder / "manifest.json", {**manifest, "files": {}, "digest": name})


def part(stage: str, config: Mapping[str, Any], size: int = 64, data: str = "") -> Part:
    return Part(f"{stage}-new", stage, config, size, data)


def test_the_same_settings_take_as_long_as_they_took_whatever_the_seed(tmp_path: Path) -> None:
    for number, seconds in enumerate((30.0, 50.0, 70.0)):
        made(tmp_path, f"teacher-{number}", TRAINING, seconds)
    made(tmp_path, "teacher-other", {"steps": 1, "batch_size": 1}, 999.0)
    assert Estimator(tmp_path).seconds(part("teacher", TRAINING)) == (50.0, "measured")


def test_other_settings_are_scaled_by_the_images_they_ask_for(tmp_path: Path) -> None:
    made(tmp_path, "distill-a", TRAINING, 40.0)
    longer = {"steps": 300, "batch_size": 16}
    assert Estimator(tmp_path).seconds(part("distill", longer)) == (pytest.approx(240.0), "scaled")


def test_what_a_part_had_to_ask_for_belongs_to_its_time(tmp_path: Path) -> None:
    made(tmp_path, "distill-a", TRAINING, 40.0, used={"cache-b": 20.0})
    assert Estimator(tmp_path).seconds(part("distill", TRAINING))[0] == 60.0


def test_without_experience_steps_and_size_are_the_guess(tmp_path: Path) -> None:
    estimator = Estimator(tmp_path / "absent")
    assert estimator.seconds(part("teacher", TRAINING, 128)) == (pytest.approx(800 * SECONDS_AN_IMAGE * 4), "guessed")
    assert estimator.seconds(part("evaluate", {"overlays": 9})) == (SECONDS_WITHOUT_STEPS, "guessed")
    samples = {"count": 10, "sampling_steps": 25, "image_size": 64}
    assert estimator.seconds(part("samples", samples))[0] == pytest.approx(250 * SECONDS_AN_IMAGE)


def test_image_size_and_tiles_of_the_test_count(tmp_path: Path) -> None:
    """At twice the side a training takes four times as long, and tiles are looked at one by one."""
    sizes = {"whole": (64, None), "large": (128, None), "tiled": (64, 32)}
    for name, (side, tile) in sizes.items():
        folder = make_prepared(tmp_path / f"prepare-{name}", size=side, counts={**dict.fromkeys(PARTS, 1), "test": 4})
        write_json(folder.folder / "dataset.json", {**folder.dataset, "tile": tile})
        write_json(folder.folder / "manifest.json", {"stage": "prepare", "config": {}, "files": {}, "digest": name})
    made(tmp_path, "distill-a", TRAINING, 40.0, data="whole")
    made(tmp_path, "evaluate-a", {}, 4.0, data="whole")
    estimator = Estimator(tmp_path)
    assert estimator.seconds(part("distill", TRAINING, data="whole")) == (40.0, "measured")
    assert estimator.seconds(part("distill", TRAINING, 128, data="large")) == (pytest.approx(160.0), "scaled")
    assert estimator.seconds(part("evaluate", {}, data="whole")) == (4.0, "measured")
    assert estimator.seconds(part("evaluate", {}, data="tiled")) == (pytest.approx(4.0 * 9), "scaled")


def test_the_sentence_says_what_it_rests_on(tmp_path: Path) -> None:
    made(tmp_path, "teacher-a", TRAINING, 120.0)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/manifest.json").write_text("{")
    parts = [part("teacher", TRAINING), part("teacher", {**TRAINING, "steps": 200}), part("evaluate", {})]
    sentence = Estimator(tmp_path).explain(parts, workers=2)
    assert sentence.startswith("about 3 min 05 s with 2 at a time for 3 parts")
    assert "1 as long as the same settings took here; 1 as long as the same stage took here, by its images" in sentence
    assert "1 a guess from steps and image size" in sentence
