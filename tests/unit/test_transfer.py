"""Sampling and the transfer set: what an interruption, a batch size or a copy may and may not change."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from tskd.data.phantoms import draw_phantom
from tskd.data.prepared import DATASET, IMAGES, MASKS, PARTS, RECORDS, Part, Prepared
from tskd.data.transfer_set import TransferSet, images_path, read_samples
from tskd.engine import Runtime, open_runtime
from tskd.errors import Paused, UserError
from tskd.metrics.quality import summarise
from tskd.models.registry import save_tensors
from tskd.recipe.schema import DiffusionConfig, EngineConfig, TransferConfig
from tskd.seeding import numpy_generator
from tskd.stages.denoisers import FILE, build_denoiser
from tskd.stages.diffusion import describe
from tskd.stages.quality import distances_between_cases, write_quality
from tskd.stages.samples import BLOCK, blocks, draw_samples, open_sampler
from tskd.stages.transfer import augmented_images, real_records, write_transfer

SIZE = 32
RUNTIME = open_runtime(EngineConfig(accelerator="cpu"))
COUNTS: dict[Part, int] = {"train": 20, "val": 4, "unlabelled": 20, "test": 8}


class Killed(Exception):
    """Stands for a kill: raised in the middle of the sampling."""


@dataclass
class Noise:
    """A sampler of noise, which can be killed at a call."""

    image_size: int = SIZE
    at_once: int = 3
    killed_at: int | None = None
    drawn: list[int] = field(default_factory=list)

    def __call__(self, numbers: Sequence[int]) -> np.ndarray:
        if self.killed_at is not None and self.killed_at in numbers:
            raise Killed
        self.drawn += numbers
        shape = (self.image_size, self.image_size, 3)
        return np.stack([numpy_generator("noise", k).integers(0, 256, shape, dtype=np.uint8) for k in numbers])


def process(rank: int, of: int) -> Runtime:
    """Return the view that one of several processes has; its barrier does not wait."""
    fabric = SimpleNamespace(
        global_rank=rank, world_size=of, is_global_zero=rank == 0, barrier=lambda: None, device=torch.device("cpu")
    )
    return Runtime(cast("Any", fabric))


def draw_patients(count: int, *, seed: int) -> np.ndarray:
    """Return one phantom of each of ``count`` patients, (count, SIZE, SIZE, 3) uint8."""
    images: dict[str, np.ndarray] = {}
    for number in itertools.count():
        phantom = draw_phantom("kidney_us", number, size=SIZE, seed=seed)
        images.setdefault(phantom.case, phantom.image)
        if len(images) == count:
            return np.stack(list(images.values()))
    raise AssertionError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Phantoms, each a case of its own."""
    folder = tmp_path_factory.mktemp("prepared")
    names = [(part, number) for part in PARTS for number in range(COUNTS[part])]
    np.save(folder / IMAGES, draw_patients(len(names), seed=3))
    np.save(folder / MASKS, np.zeros((COUNTS["train"] + COUNTS["val"], SIZE, SIZE), dtype=np.uint8))
    square = {"height": SIZE, "width": SIZE, "spacing": None}
    records = [{"id": f"{part}{k}", "case": f"{part} case {k}", "part": part, **square} for part, k in names]
    (folder / RECORDS).write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / DATASET).write_text(json.dumps({"name": "made up", "classes": ["kidney"]}))
    return Prepared(folder)


# --- sampling ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("whole")
    draw_samples(range(8), Noise(), folder, runtime=process(0, 1))
    return read_samples([folder])


@pytest.mark.parametrize("killed_at", range(8))
def test_sampling_goes_on_after_a_kill_at_any_image(killed_at: int, whole: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        draw_samples(range(8), Noise(killed_at=killed_at), tmp_path, runtime=process(0, 1))
    second = Noise()
    draw_samples(range(8), second, tmp_path, runtime=process(0, 1))
    assert np.array_equal(read_samples([tmp_path]), whole)
    assert second.drawn == list(range(killed_at // 3 * 3, 8)), "finished chunks are not drawn again"


def test_processes_share_the_images_out(whole: np.ndarray, tmp_path: Path) -> None:
    first, second = Noise(), Noise()
    draw_second: Callable[[], object] = lambda: draw_samples(range(8), second, tmp_path, runtime=process(1, 2))  # noqa: E731
    with pytest.raises(Paused, match="1 of 3 chunks"):
        draw_second()  # the other process is not there yet, and a real barrier would wait for it
    draw_samples(range(8), first, tmp_path, runtime=process(0, 2))
    assert sorted(first.drawn + second.drawn) == list(range(8))
    assert second.drawn == [3, 4, 5]
    assert np.array_equal(read_samples([tmp_path]), whole)


def test_the_time_limit_pauses_before_the_next_chunk(tmp_path: Path) -> None:
    late = Runtime(process(0, 1).fabric, deadline=0.0)
    sampler = Noise()
    with pytest.raises(Paused, match="0 of 3 chunks"):
        draw_samples(range(8), sampler, tmp_path, runtime=late)
    assert not sampler.drawn


@pytest.fixture(scope="module")
def denoiser(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained denoiser for 16 px images of two classes, whose answers depend on its input."""
    folder = tmp_path_factory.mktemp("denoiser")
    description = describe(DiffusionConfig(image_size=16), prepared, {"a": 3, "b": 1})
    torch.manual_seed(0)
    model = build_denoiser(description)
    torch.nn.init.normal_(cast("Any", model.head)[2].weight, std=0.1)
    save_tensors(folder, model.state_dict(), description.as_dict(), file=FILE)
    return folder


def test_image_k_is_the_same_however_many_are_drawn(denoiser: Path, tmp_path: Path) -> None:
    config = DiffusionConfig(image_size=16, sampling_steps=2)
    sampler = open_sampler(denoiser, config, image_size=SIZE, seed=5, runtime=RUNTIME)
    few, many = tmp_path / "few", tmp_path / "many"
    draw_samples(range(3), sampler, few, runtime=RUNTIME)
    draw_samples(range(20), sampler, many, runtime=RUNTIME)
    assert read_samples([many]).shape == (20, SIZE, SIZE, 3)
    assert np.array_equal(read_samples([few]), read_samples([many])[:3])
    assert len(np.unique(read_samples([many]), axis=0)) == 20
    other = open_sampler(denoiser, config, image_size=SIZE, seed=6, runtime=RUNTIME)
    assert not np.array_equal(other([0])[0], read_samples([few])[0])


# --- the transfer set ---


def pixels(images: np.ndarray) -> np.ndarray:
    """Features for tests: the images in 4 x 4 cells."""
    cells = images.reshape(len(images), 4, SIZE // 4, 4, SIZE // 4, 3).mean(axis=(2, 4))
    return cells.reshape(len(images), -1).astype(np.float32)


@pytest.fixture(scope="module")
def planted(prepared: Prepared) -> np.ndarray:
    """Six new phantoms, then copies of training images 0, 21 and 22: exact, flipped, brightened; and a test image."""
    new = draw_patients(6, seed=99)
    sources = prepared.images[prepared.rows("train", "unlabelled")[[0, 21, 22]]]
    copies = [sources[0], sources[1][:, ::-1], (sources[2] * 0.8 + 20).astype(np.uint8)]
    return np.stack([*new, *copies, prepared.images[prepared.rows("test")[0]]])


@pytest.fixture(scope="module")
def mixed(
    prepared: Prepared, planted: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("mixed")
    config = TransferConfig(real=10, synthetic=len(planted), augmented=5)
    return folder, write_transfer(config, prepared, folder, seed=0, samples=planted)


def test_planted_copies_are_dropped_and_shown(
    mixed: tuple[Path, dict[str, Any]], prepared: Prepared, planted: np.ndarray
) -> None:
    folder, metrics = mixed
    gate = json.loads((folder / "gate.json").read_text())
    found = {copy["sample"]: copy["source"] for copy in gate["copies"]["found"]}
    names = prepared.names(prepared.rows("train", "unlabelled"))
    assert found == {6: names[0], 7: names[21], 8: names[22]}
    assert (metrics["sampled"], metrics["copies_dropped"], metrics["synthetic"]) == (10, 3, 7)
    assert gate["copies_of_test_images"]["found"] == 1
    assert (folder / "copies.png").is_file()
    assert (folder / "sheet.png").is_file()
    assert np.array_equal(np.load(images_path(folder, "synthetic")), planted[[0, 1, 2, 3, 4, 5, 9]])


def test_the_set_holds_what_was_asked_for_in_order(
    mixed: tuple[Path, dict[str, Any]], prepared: Prepared, planted: np.ndarray
) -> None:
    folder, metrics = mixed
    transfer = TransferSet(folder, prepared)
    assert [record.origin for record in transfer.records] == ["real"] * 10 + ["synthetic"] * 7 + ["augmented"] * 5
    assert metrics["shares"] == {"real": 0.4545, "synthetic": 0.3182, "augmented": 0.2273}
    assert transfer.names[16] == "synthetic/000009", "named by the number it was drawn with, copies counted"
    assert np.array_equal(transfer.images[[16]][0], planted[9])
    assert np.array_equal(transfer.images[[0]][0], prepared.images[prepared.rows("unlabelled")[0]])
    assert len(set(transfer.names)) == 22


def test_quality_is_complete_with_units_and_numbers(
    mixed: tuple[Path, dict[str, Any]], prepared: Prepared, planted: np.ndarray, tmp_path: Path
) -> None:
    spaces = {"teacher": pixels, "imagenet": None}
    metrics = write_quality(planted, spaces, mixed[0], prepared, tmp_path, seed=0)
    assert metrics == {"judged_in": ["pixels", "teacher"]}
    quality = json.loads((tmp_path / "quality.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert "copying, not quality" in quality["pixels"]["note"]
    assert quality["pixels"]["psnr_db"]["infinite"] == 1, "the exact copy"
    assert quality["pixels"]["psnr_db"]["n"] == 10
    assert "under 500" in quality["teacher"]["kid"]["warning"]
    low, high = quality["teacher"]["kid"]["ci95"]
    assert low < quality["teacher"]["kid"]["mean"] < high
    assert "`offline`" in quality["imagenet"]["skipped"]
    for space in ("pixels", "teacher"):
        assert 0.5 < quality[space]["diversity"]["ratio"] < 2
        distances = quality[space]["nearest_training_image"]
        assert distances["synthetic"]["n"] == 10
        assert distances["training_images_of_different_cases"]["n"] == 40
        assert distances["unit"]
    assert quality["copies"]["unit"]
    assert quality.items() >= json.loads((mixed[0] / "gate.json").read_text()).items()


def test_noise_is_warned_of_and_does_not_stop(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = Noise()(range(6))
    metrics = write_transfer(TransferConfig(synthetic=6), prepared, tmp_path, seed=0, samples=noise)
    assert metrics["synthetic"] == 6
    assert "warning: transfer: The samples are still pure noise" in capsys.readouterr().err
    assert not (tmp_path / "copies.png").exists()


def test_fewer_real_images_are_drawn_and_not_the_first_of_a_sorted_list(prepared: Prepared) -> None:
    def drawn(count: int, seed: int) -> list[int]:
        return [record.row for record in real_records(TransferConfig(real=count), prepared, seed=seed)]

    unlabelled = len(prepared.rows("unlabelled"))
    fewer, more, all_unlabelled = (set(drawn(count, 1)) for count in (6, 12, unlabelled))
    assert fewer < more < all_unlabelled
    assert all_unlabelled == set(prepared.rows("unlabelled").tolist())
    assert drawn(6, 1) == drawn(6, 1) != drawn(6, 2)
    assert drawn(12, 1) != prepared.rows("unlabelled")[:12].tolist()


def test_augmented_images_depend_on_seed_and_number_alone(prepared: Prepared) -> None:
    some, more = (list(augmented_images(numbers, prepared, flip="auto", seed=1)) for numbers in ([3, 23], range(24)))
    assert np.array_equal(some[0], more[3])
    assert np.array_equal(some[1], more[23])
    assert not np.array_equal(more[3], more[23]), "the same source, drawn anew"
    assert not np.array_equal(next(augmented_images([3], prepared, flip="auto", seed=2)), more[3])


def test_augmented_images_come_from_the_labelled_training_part(prepared: Prepared, tmp_path: Path) -> None:
    """Where every other image is black, none of them is; and each source is used equally often."""
    folder = tmp_path / "marked"
    shutil.copytree(prepared.folder, folder)
    images = np.zeros_like(prepared.images)
    rows = prepared.rows("train")
    images[rows] = np.linspace(60, 250, len(rows)).astype(np.uint8)[:, None, None, None]
    np.save(folder / IMAGES, images)
    drawn = augmented_images(range(2 * len(rows)), Prepared(folder), flip="auto", seed=1)
    brightness = [image.mean() for image in drawn]
    assert min(brightness) > 15
    assert np.corrcoef(brightness, np.tile(np.linspace(60, 250, len(rows)), 2))[0, 1] > 0.6


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TransferConfig(real=41), r"transfer\.real: 41 images are asked for, the training data has 40"),
        (TransferConfig(real=0), "the transfer set is empty"),
        (TransferConfig(synthetic=3), r"transfer\.synthetic: 3 images are too few"),
    ],
)
def test_impossible_counts_are_refused(
    config: TransferConfig, message: str, prepared: Prepared, planted: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        write_transfer(config, prepared, tmp_path, seed=0, samples=planted[: config.synthetic])


def test_distances_are_to_the_nearest_image_of_another_case() -> None:
    rows = np.array([[0.0], [1.0], [5.0], [11.0]], dtype=np.float32)
    assert distances_between_cases(rows, ["a", "a", "b", "c"]).tolist() == [25, 16, 16, 36]


def test_a_summary_counts_what_is_infinite() -> None:
    summary = summarise(np.array([1.0, 3.0, np.inf]))
    assert (summary["n"], summary["infinite"], summary["mean"], summary["quantiles"]["0.5"]) == (3, 1, 2.0, 2.0)


def test_nothing_to_sample_is_said() -> None:
    with pytest.raises(UserError, match=r"transfer\.synthetic is 0"):
        blocks(0)


def test_a_larger_set_begins_with_the_blocks_of_a_smaller_one(whole: np.ndarray, tmp_path: Path) -> None:
    small, large = blocks(2 * BLOCK), blocks(3 * BLOCK + 1)
    assert large[:2] == small
    assert [len(block) for block in large] == [BLOCK, BLOCK, BLOCK, 1]
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, numbers in zip(folders, (range(5), range(5, 8))):
        draw_samples(numbers, Noise(), folder, runtime=process(0, 1))
    assert np.array_equal(read_samples(folders), whole)
