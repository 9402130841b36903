"""A teacher of another size: it is shown the sharp image, and what it answers lies where the student's pixels lie.

Every pixel of these images holds its own place, red from left to right, green from top to bottom, so that two views are
compared by the places they show; blue is full inside the image.
"""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tests.made_up import SMALL_VIT
from tskd.data.layouts import Dataset, open_dataset
from tskd.data.prepared import (
    DATASET,
    IMAGES,
    MASKS,
    Part,
    Prepared,
    PreparedRecord,
    squeeze_image,
    squeeze_mask,
    write_prepared_records,
)
from tskd.data.transfer_set import TransferRecord, TransferSet, images_path, write_images, write_records
from tskd.engine import ImageBatches, open_runtime
from tskd.engine.batches import to_images
from tskd.errors import RunFailed
from tskd.machine.disk import write_json
from tskd.models.description import NetworkDescription
from tskd.models.registry import build_model
from tskd.recipe.schema import AugmentConfig, EngineConfig
from tskd.stages.cache import build_cache, plan_cache
from tskd.stages.distill import online
from tskd.stages.pseudo_masks import predict_masks
from tskd.stages.stored_answers import CachedBatches
from tskd.stages.teacher_images import write_teacher_images
from tskd.stages.transfer_masks import pseudo_labels
from tskd.types import Batch, SegmentationOutput

SIZE, TEACHER = 48, 80
"""A third of the teacher's side is 26 2/3 pixels: no crop ends on one."""
TOLERANCE = 0.2
"""Pixels of the student; 8 bit alone allow 0.13, a grid that is off by half a pixel of either gives 0.33 or more."""
NATIVE = {"b": (96, 150), "a": (120, 100), "c": (48, 48), "d": (200, 90)}
"""Name -> height and width; the order of the rows is not that of the names."""
STUDENT = NetworkDescription("timm", {"backbone": SMALL_VIT, "decoder": "plain"}, ("one", "two", "three"), SIZE)
RUNTIME = open_runtime(EngineConfig(accelerator="cpu"))
GEOMETRY = [
    (0.0, (False, False), 0.0),
    (15.0, (True, False), 0.0),
    (180.0, (True, True), 0.0),
    (0.0, (False, False), 0.67),
    (180.0, (True, True), 0.67),
]


class Seeing(nn.Module):
    """A teacher whose answer is what it is shown, at the size it is shown at."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: set[int] = set()

    def forward(self, images: Tensor) -> SegmentationOutput:
        self.seen.add(images.shape[-1])
        return SegmentationOutput((images,), self.scale * images)


class FeaturesAlone(Seeing):
    """The same, without a decoder, as the task-agnostic arm has its teacher."""

    def forward(self, images: Tensor) -> SegmentationOutput:
        return SegmentationOutput((images,), super().forward(images).logits[:, :0])


def coded(height: int, width: int) -> np.ndarray:
    across, down = (255 * (np.arange(side) + 0.5) / side for side in (width, height))
    planes = np.broadcast_arrays(across[None], down[:, None], np.full((1, 1), 255.0))
    return np.rint(np.stack(planes, axis=-1)).astype(np.uint8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("places")
    for name, (height, width) in NATIVE.items():
        image = coded(height, width)
        for kind, pixels in (("images", image), ("masks", 255 * (image[..., 0] > 100).astype(np.uint8))):
            (root / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / kind / f"{name}.png")
    return open_dataset(root)


@pytest.fixture(scope="module")
def prepared(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The student's: two labelled images, one without a label, one to test on."""
    folder = tmp_path_factory.mktemp("prepared")
    source = {record.id: record for record in dataset.records}
    parts: tuple[Part, ...] = ("train", "val", "unlabelled", "test")
    images = [dataset.read_image(source[name]) for name in NATIVE]
    np.save(folder / IMAGES, np.stack([squeeze_image(image, SIZE) for image in images]))
    masks = [dataset.read_mask(source[name]) for name in list(NATIVE)[:2]]
    np.save(folder / MASKS, np.stack([squeeze_mask(mask, SIZE) for mask in masks]))
    records = [PreparedRecord(name, name, part, *NATIVE[name], None) for name, part in zip(NATIVE, parts)]
    write_prepared_records(folder, records)
    write_json(folder / DATASET, {"name": "places", "classes": ["right"], "image_size": SIZE})
    return Prepared(folder)


@pytest.fixture(scope="module")
def sharp(dataset: Dataset, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("sharp")
    assert write_teacher_images(dataset, prepared, TEACHER, folder)["images"] == 3
    return Prepared(folder)


@pytest.fixture(scope="module")
def listed(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transfer set of the images without label, those with, and a made-up one that exists at the student's size."""
    folder = tmp_path_factory.mktemp("transfer")
    write_images(images_path(folder, "synthetic"), [coded(SIZE, SIZE)], count=1, size=SIZE)
    real = [TransferRecord(prepared.records[row].id, "real", row) for row in (2, 0, 1)]
    write_records(folder, [*real, TransferRecord("synthetic/0", "synthetic", 0)])
    return folder


def assert_same_places(student: Tensor, teacher: Tensor) -> None:
    """Compare (B, 3, s, s) of the student's with (B, 3, t, t) of the teacher's where both are inside the image."""
    small = F.interpolate(teacher, size=student.shape[-2:], mode="bilinear", antialias=True)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))  # antialiasing leans inwards at a border
    student, small = student[inner], small[inner]
    inside = ((student[:, 2] > 0.999) & (small[:, 2] > 0.999)).unsqueeze(1)
    margin = 2 / SIZE
    inside = inside & ((student[:, :2] > margin) & (student[:, :2] < 1 - margin)).all(dim=1, keepdim=True)
    assert inside.float().mean() > 0.3
    assert SIZE * ((student - small)[:, :2].abs() * inside).max() < TOLERANCE


def test_rows_and_masks_are_those_of_the_student_read_anew(
    dataset: Dataset, prepared: Prepared, sharp: Prepared
) -> None:
    source = {record.id: record for record in dataset.records}
    assert [record.part for record in sharp.records] == ["train", "val", "unlabelled"], "nothing of the test"
    assert sharp.names(range(3)) == prepared.names(range(3))
    assert sharp.images.shape == (3, TEACHER, TEACHER, 3)
    for row, record in enumerate(sharp.records):
        image = Image.fromarray(dataset.read_image(source[record.id]))
        expected = np.asarray(image.resize((TEACHER, TEACHER), Image.Resampling.BILINEAR))
        assert np.array_equal(sharp.images[row], expected)
    assert sharp.masks.shape == (2, TEACHER, TEACHER)
    right = sharp.images[:2, ..., 0] > 100
    assert (right != sharp.masks.astype(bool)).mean() < 0.02, "at most a column of pixels"
    assert_same_places(to_images(prepared.images[:3]), to_images(sharp.images[:3]))


@pytest.mark.parametrize(("rotate", "flip", "crop"), GEOMETRY)
def test_the_teacher_is_shown_online_what_the_student_is_shown(
    prepared: Prepared, sharp: Prepared, rotate: float, flip: tuple[bool, bool], crop: float
) -> None:
    augment = AugmentConfig(rotate=rotate, scale=0.15, shift=0.08, crop=crop, p_elastic=0.5, elastic=0.03)
    batches = ImageBatches(
        prepared.images[:3], None, prepared.names(range(3)), 3, augment, seed=4, flip=flip, teacher_images=sharp.images
    )
    sides = set()
    teacher = Seeing()
    ask = online(teacher, RUNTIME)
    for step in range(6):
        batch = batches(step, 0, 1)
        assert batch.teacher_images is not None
        sides.add(batch.images.shape[-1])
        assert_same_places(batch.images, batch.teacher_images)
        answer = ask(batch).logits
        assert answer.shape == batch.images.shape
        assert_same_places(batch.images, answer)
    assert sides == ({16, 32, 48} if crop else {48})
    assert teacher.seen == ({27, 53, 80} if crop else {80})


@pytest.mark.parametrize(("rotate", "flip", "crop"), GEOMETRY)
def test_stored_answers_lie_where_the_students_pixels_lie(
    prepared: Prepared,
    sharp: Prepared,
    listed: Path,
    tmp_path: Path,
    rotate: float,
    flip: tuple[bool, bool],
    crop: float,
) -> None:
    teacher, augment = Seeing(), AugmentConfig(rotate=rotate, crop=crop, p_elastic=0.5, elastic=0.03)
    stored_in(tmp_path, teacher, TransferSet(listed, sharp), augment)
    assert teacher.seen == {TEACHER}
    reader = CachedBatches(tmp_path, TransferSet(listed, prepared), 4, augment, seed=9, flip=flip)
    for step in range(6):
        batch = reader(step, 0, 1)
        assert batch.targets is not None
        assert batch.targets.logits.shape == batch.images.shape
        assert_same_places(batch.images, batch.targets.logits)
        features = batch.targets.features[0]
        expected = F.adaptive_avg_pool2d(batch.images, features.shape[-2:])
        inside = torch.minimum(features, expected)[:, 2:] > 0.999
        assert ((features - expected).abs() * inside).max() < 0.02, "a cell is a sixth of the side"


def stored_in(folder: Path, teacher: nn.Module, shown: TransferSet, augment: AugmentConfig) -> None:
    layout = plan_cache(teacher, build_model(STUDENT), shown, image_size=SIZE, views=2, seed=5)
    build_cache(teacher, shown, layout, augment, folder, runtime=RUNTIME)


def test_a_teacher_of_features_alone_is_cached_and_asked_at_its_own_size(
    prepared: Prepared, sharp: Prepared, listed: Path, tmp_path: Path
) -> None:
    shown, seen, augment = TransferSet(listed, sharp), TransferSet(listed, prepared), AugmentConfig()
    stored_in(tmp_path, FeaturesAlone(), shown, augment)
    batch = CachedBatches(tmp_path, seen, 4, augment, seed=9)(0, 0, 1)
    assert batch.targets is not None
    assert batch.targets.logits.shape == (4, 0, SIZE, SIZE)
    fresh = ImageBatches(seen.images, None, seen.names, 4, augment, seed=9, teacher_images=shown.images)
    answer = online(FeaturesAlone(), RUNTIME)(fresh(0, 0, 1))
    assert answer.logits.shape == (4, 0, SIZE, SIZE)
    assert answer.features[0].shape[-1] == TEACHER


def test_made_up_images_are_enlarged_for_the_teacher(prepared: Prepared, sharp: Prepared, listed: Path) -> None:
    shown, seen = TransferSet(listed, sharp).images, TransferSet(listed, prepared).images
    assert shown.shape == (4, TEACHER, TEACHER, 3)
    assert_same_places(to_images(seen[range(4)]), to_images(shown[range(4)]))
    assert np.array_equal(shown[[1]][0], sharp.images[0]), "a real one is the sharp one"


def test_pseudo_labels_come_from_sharp_images_at_the_students_size(
    prepared: Prepared, sharp: Prepared, listed: Path, tmp_path: Path
) -> None:
    teacher = Seeing()
    predict_masks(teacher, TransferSet(listed, sharp), tmp_path, image_size=SIZE, runtime=RUNTIME)
    assert teacher.seen == {TEACHER}
    masks = pseudo_labels(TransferSet(listed, prepared), tmp_path).masks
    assert masks.shape == (4, SIZE, SIZE)
    assert (masks == 3).mean() > 0.9, "blue is the strongest but at the far ends of the others"


def test_too_little_room_for_the_teachers_images_is_said(
    dataset: Dataset, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage: Callable[[object], object] = lambda _: namedtuple("usage", "total used free")(10**9, 10**9, 60_000)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(RunFailed, match=r"the teacher's images need .* GB .* teacher\.image_size"):
        write_teacher_images(dataset, prepared, TEACHER, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_teacher_answers_for_the_plain_image_and_as_at_work(prepared: Prepared, listed: Path, tmp_path: Path) -> None:
    """The student's view has other colours; a teacher in training would drop parts of its answer."""
    plain = to_images(prepared.images[:3])
    teacher = Seeing()
    assert torch.equal(online(teacher, RUNTIME)(Batch(plain, 1 - plain)).logits, plain)
    stored, predicted = Seeing(), Seeing()
    shown = TransferSet(listed, prepared)
    layout = plan_cache(Seeing(), build_model(STUDENT), shown, image_size=SIZE, views=2, seed=5)
    build_cache(stored, shown, layout, AugmentConfig(), tmp_path, runtime=RUNTIME)
    predict_masks(predicted, shown, tmp_path, image_size=SIZE, runtime=RUNTIME)
    assert not any(one.training for one in (teacher, stored, predicted))
