"""Stored teacher answers: they are the teacher's, they move with the image, and a kill costs one shard at most."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tskd.comparison.plan import PlanStore
from tskd.data.prepared import DATASET, IMAGES, RECORDS, Prepared
from tskd.data.transfer_set import TransferRecord, TransferSet, write_records
from tskd.engine import Runtime, open_runtime
from tskd.errors import RunFailed
from tskd.models.description import NetworkDescription
from tskd.models.projections import matching_level
from tskd.models.registry import build_model
from tskd.recipe.schema import AppearanceConfig, AugmentConfig, DistillConfig, EngineConfig
from tskd.seeding import numpy_generator
from tskd.stages import cache, stored_answers
from tskd.stages.cache import build_cache, plan_cache
from tskd.stages.distill import attach_projection, distillation_step, stored
from tskd.stages.lesson import Lesson
from tskd.stages.stored_answers import CachedBatches, CacheLayout, shard_path
from tskd.stages.workbench import Workbench
from tskd.types import SegmentationOutput

SIZE, COUNT, VIEWS = 32, 70, 2
"""70 images fill one shard of 64 and begin a second."""
RUNTIME = open_runtime(EngineConfig(accelerator="cpu"))
STUDENT, TEACHER = (
    NetworkDescription("timm", {"backbone": backbone, "decoder": decoder}, ("one", "two"), SIZE)
    for backbone, decoder in (("vit_tiny_patch16_224", "plain"), ("resnet10t", "pyramid"))
)


class Equivariant(nn.Module):
    """A teacher that answers a turned image with the turned answer, exactly: it only averages and mixes channels."""

    feature_dims = (5,)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 2, 1)

    def forward(self, images: Tensor) -> SegmentationOutput:
        return SegmentationOutput((F.avg_pool2d(self.mix(images), 8),), self.head(images))


class Killed(Exception):
    """Stands for a kill in the middle of building."""


@pytest.fixture(scope="module")
def transfer(tmp_path_factory: pytest.TempPathFactory) -> TransferSet:
    folder = tmp_path_factory.mktemp("transfer")
    images = numpy_generator("cache test").integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    np.save(folder / IMAGES, images)
    square = {"height": SIZE, "width": SIZE, "spacing": None}
    records = [{"id": f"i{k}", "case": f"c{k}", "part": "unlabelled", **square} for k in range(COUNT)]
    (folder / RECORDS).write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / DATASET).write_text(json.dumps({"name": "noise", "classes": STUDENT.classes}))
    listed = folder / "listed"
    listed.mkdir()
    write_records(listed, [TransferRecord(f"i{row}", "real", row) for row in range(COUNT)])
    return TransferSet(listed, Prepared(folder))


def plan(teacher: nn.Module, transfer: TransferSet) -> CacheLayout:
    torch.manual_seed(1)
    return plan_cache(teacher, build_model(STUDENT), transfer, image_size=SIZE, views=VIEWS, seed=5)


def built(
    teacher: nn.Module, transfer: TransferSet, folder: Path, augment: AugmentConfig, runtime: Runtime = RUNTIME
) -> Path:
    folder.mkdir(exist_ok=True)
    build_cache(teacher, transfer, plan(teacher, transfer), augment, folder, runtime=runtime)
    return folder


def batches(folder: Path, transfer: TransferSet, augment: AugmentConfig, flip: tuple[bool, bool]) -> CachedBatches:
    return CachedBatches(folder, transfer, 8, augment, seed=9, flip=flip)


@pytest.mark.parametrize(
    ("rotate", "flip", "crop", "often"),
    [
        (15.0, (False, False), 0.0, {}),
        (15.0, (True, False), 0.0, {}),
        (15.0, (True, True), 0.0, {}),
        (180.0, (True, True), 0.0, {}),
        (180.0, (True, True), 0.5, {}),
        (90.0, (False, False), 0.0, {}),
        (180.0, (True, False), 0.5, {"p_rotate": 0.5, "p_elastic": 0.5, "elastic": 0.06}),
    ],
)
def test_stored_answers_are_those_the_teacher_gives_for_the_batch(
    transfer: TransferSet,
    tmp_path: Path,
    rotate: float,
    flip: tuple[bool, bool],
    crop: float,
    often: dict[str, float],
) -> None:
    """The teacher turns with its input, so any symmetry applied to the image but not to its answer would show."""
    teacher, augment = Equivariant(), AugmentConfig(rotate=rotate, crop=crop, **often)
    reader = batches(built(teacher, transfer, tmp_path / "cache", augment), transfer, augment, flip)
    sides = set()
    for step in range(6):
        batch = reader(step, 0, 1)
        assert batch.targets is not None
        sides.add(batch.images.shape[-1])
        with torch.no_grad():
            answer = teacher(batch.images)
        features = F.adaptive_avg_pool2d(answer.features[0], batch.targets.features[0].shape[-2:])
        torch.testing.assert_close(batch.targets.logits, answer.logits, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(batch.targets.features[0], features, atol=2e-3, rtol=2e-3)
    assert sides == ({16, 32} if crop else {32})


def test_styles_change_what_the_student_sees_and_no_answer(transfer: TransferSet, tmp_path: Path) -> None:
    settings = {"photometric": 0, "amplitude_band": 0.5}
    plain, styled = AugmentConfig(**settings), AugmentConfig(**settings, amplitude=1.0)
    folder = built(Equivariant(), transfer, tmp_path / "cache", plain)
    before, after = (batches(folder, transfer, one, (True, False))(2, 0, 1) for one in (plain, styled))
    assert before.targets is not None
    assert after.targets is not None
    assert torch.equal(after.images, before.images)
    assert torch.equal(after.targets.logits, before.targets.logits)
    assert torch.equal(before.views, before.images)
    assert (after.views != after.images).flatten(1).any(1).all()


def test_an_fp16_cache_changes_the_loss_by_less_than_a_thousandth(transfer: TransferSet, tmp_path: Path) -> None:
    torch.manual_seed(2)
    teacher, student = build_model(TEACHER).eval(), build_model(STUDENT)
    augment = AugmentConfig()
    reader = batches(built(teacher, transfer, tmp_path / "cache", augment), transfer, augment, (False, False))
    first = reader(0, 0, 1)
    level, module = attach_projection(student, stored(first))
    config = DistillConfig()

    def ask(batch: Any) -> SegmentationOutput:
        answer = teacher(batch.images)
        return SegmentationOutput((answer.features[stored_answers.read_layout(reader.folder).level],), answer.logits)

    for step in range(3):
        batch = reader(step, 0, 1)
        with torch.no_grad():
            from_cache = distillation_step(config, stored, level)(module, batch)["loss"]
            online = distillation_step(config, ask, level)(module, batch)["loss"]
        assert from_cache != online, "the same number would mean that the cache was not read"
        assert abs(from_cache - online) < 1e-3 * online


def test_a_batch_is_a_function_of_seed_and_step_and_cuts_into_parts(transfer: TransferSet, tmp_path: Path) -> None:
    augment = AugmentConfig()
    reader = batches(built(Equivariant(), transfer, tmp_path / "cache", augment), transfer, augment, (True, False))
    whole, again, other = reader(3, 0, 1), reader(3, 0, 1), reader(4, 0, 1)
    parts = [reader(3, part, 2) for part in range(2)]
    assert torch.equal(whole.views, again.views)
    assert whole.names != other.names
    assert torch.equal(whole.views, torch.cat([part.views for part in parts]))
    assert torch.equal(stored(whole).logits, torch.cat([stored(part).logits for part in parts]))


def test_stored_views_are_bent_and_turned_as_often_as_the_settings_say(transfer: TransferSet, tmp_path: Path) -> None:
    """View 0 is the image itself; with no turns allowed but by ``p_rotate`` 0 no quarter turn is left."""
    often = {"rotate": 180.0, "p_rotate": 0.0, "scale": 0.0, "shift": 0.0, "p_elastic": 1.0}
    augment = AugmentConfig(**often, photometric=0)
    folder = built(Equivariant(), transfer, tmp_path / "cache", augment)
    points = torch.cat([load_file(path)[stored_answers.BENDS] for path in sorted(folder.glob("*.safetensors"))])
    bent = points.abs().amax(dim=(2, 3, 4)) > 0
    assert not bent[:, 0].any()
    assert bent[:, 1:].all()
    reader = batches(folder, transfer, augment, (True, False))
    assert {element for step in range(9) for element in reader.elements(step).tolist()} == {0, 4}
    half = batches(folder, transfer, augment.model_copy(update={"p_rotate": 0.5}), (False, False))
    turned = np.concatenate([half.elements(step) for step in range(60)]) > 0
    assert turned.mean() == pytest.approx(0.5 * 0.75, abs=0.06), "three of four turns are turns"


def test_grey_values_change_for_the_student_and_the_stored_answer_stays(transfer: TransferSet, tmp_path: Path) -> None:
    weak = AugmentConfig()
    folder = built(Equivariant(), transfer, tmp_path / "cache", weak)
    strong = weak.model_copy(update={"appearance": AppearanceConfig(p_gamma=1.0)})
    before, after = (batches(folder, transfer, augment, (True, False))(1, 0, 1) for augment in (weak, strong))
    assert torch.equal(before.images, after.images)
    assert torch.equal(stored(before).logits, stored(after).logits)
    assert not torch.equal(before.views, after.views)


def name_of(augment: AugmentConfig, folder: Path, transfer: TransferSet) -> str:
    """Return the name of the cache that a recipe with this augmentation asks for; it is only planned."""
    bench = Workbench(PlanStore(folder), 0, RUNTIME, "32-true")
    lesson = cast(Lesson, SimpleNamespace(seen=transfer, inputs={"teacher": "one"}))
    found = cache.build(bench, DistillConfig(cache="on", augment=augment), lesson)
    assert found is not None
    return found.path.name


OF_THE_STUDENT = {"photometric": 0.5, "appearance": {}, "amplitude": 0.5, "flip": "both", "crop": 0.25}
OF_THE_VIEWS = {"rotate": 10.0, "scale": 0.3, "shift": 0.0, "p_rotate": 0.5, "p_scale": 0.5, "p_elastic": 0.5}


@pytest.mark.parametrize(("key", "value"), (OF_THE_STUDENT | OF_THE_VIEWS).items(), ids=str)
def test_settings_share_stored_answers_exactly_where_the_shards_are_the_same(
    key: str, value: Any, transfer: TransferSet, tmp_path: Path
) -> None:
    usual, other = AugmentConfig(), AugmentConfig(**{key: value})
    shards = [
        [path.read_bytes() for path in sorted(built(Equivariant(), transfer, tmp_path / name, augment).glob("shard-*"))]
        for name, augment in (("usual", usual), ("other", other))
    ]
    assert (shards[0] == shards[1]) == (key in OF_THE_STUDENT)
    names = [name_of(augment, tmp_path / "artifacts", transfer) for augment in (usual, other)]
    assert (names[0] == names[1]) == (key in OF_THE_STUDENT)


def test_finished_shards_survive_a_kill_and_the_result_is_the_same(
    transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, augment = Equivariant(), AugmentConfig()
    whole = built(teacher, transfer, tmp_path / "whole", augment)
    write = cache.write_shard

    def killed_at_the_second(*arguments: Any, **more: Any) -> None:
        if shard_path(tmp_path / "broken", 0).exists():
            raise Killed
        write(*arguments, **more)

    monkeypatch.setattr(cache, "write_shard", killed_at_the_second)
    with pytest.raises(Killed):
        built(teacher, transfer, tmp_path / "broken", augment)
    kept = shard_path(tmp_path / "broken", 0).stat().st_mtime_ns
    monkeypatch.setattr(cache, "write_shard", write)
    broken = built(teacher, transfer, tmp_path / "broken", augment)
    assert shard_path(broken, 0).stat().st_mtime_ns == kept
    assert [path.read_bytes() for path in sorted(whole.glob("*.safetensors"))] == [
        path.read_bytes() for path in sorted(broken.glob("*.safetensors"))
    ]


def test_two_processes_share_the_shards_out(transfer: TransferSet, tmp_path: Path) -> None:
    teacher, augment = Equivariant(), AugmentConfig()
    whole = built(teacher, transfer, tmp_path / "whole", augment)
    written = []
    for rank in range(2):
        shared = built(teacher, transfer, tmp_path / "shared", augment, process(rank, 2))
        written.append(len(list(shared.glob("*.safetensors"))))
    assert written == [1, 2]
    assert shard_path(shared, 1).read_bytes() == shard_path(whole, 1).read_bytes()


def test_too_little_room_is_said_before_anything_is_written(
    transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RunFailed, match=r"need .* GB .* distill\.views"):
        built(Equivariant(), transfer, tmp_path / "cache", AugmentConfig())
    assert not list((tmp_path / "cache").iterdir())


def test_shards_of_large_answers_hold_fewer_images_and_are_read_all_the_same(
    transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, augment = Equivariant(), AugmentConfig()
    small = batches(built(teacher, transfer, tmp_path / "small", augment), transfer, augment, (True, False))
    monkeypatch.setattr(cache, "SHARD_BYTES", plan(teacher, transfer).bytes // 10)
    large = batches(built(teacher, transfer, tmp_path / "large", augment), transfer, augment, (True, False))
    assert len(list((tmp_path / "large").glob("*.safetensors"))) == 10
    for step in range(3):
        assert torch.equal(stored(small(step, 0, 1)).logits, stored(large(step, 0, 1)).logits)


@pytest.mark.parametrize(("side", "level"), [(32, 2), (16, 0), (8, 1), (5, 1), (3, 2)])
def test_the_deepest_features_that_are_fine_enough_are_matched(side: int, level: int) -> None:
    """Of teacher's grids of 16, 8 and 4; where all are coarser than the student's, the deepest."""
    assert matching_level([torch.zeros(1, 2, size, size) for size in (16, 8, 4)], side) == level


@pytest.mark.parametrize(("steps", "pays"), [(17, False), (18, True)])
def test_the_rule_of_thumb_caches_where_views_are_seen_twice(steps: int, pays: bool) -> None:
    """70 images in 2 views are half of 280 looked at: 17.5 steps of 16."""
    config = DistillConfig(steps=steps, batch_size=16, views=VIEWS)
    assert cache.cache_pays(config, COUNT) is pays
    assert cache.cache_pays(config.model_copy(update={"cache": "on"}), COUNT)
    assert not cache.cache_pays(config.model_copy(update={"cache": "off"}), COUNT)


def process(rank: int, of: int) -> Runtime:
    """Return the view that one of several processes has; its barrier does not wait."""
    fabric = SimpleNamespace(
        global_rank=rank, world_size=of, is_global_zero=rank == 0, barrier=lambda: None,
        device=torch.device("cpu"), autocast=lambda: torch.autocast("cpu", enabled=False),
    )  # fmt: skip
    return Runtime(cast("Any", fabric))
