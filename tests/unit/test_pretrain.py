"""Pretraining on images alone: what a kill, a cut batch or another process may and may not change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.made_up import SMALL_VIT, make_prepared, make_transfer
from tskd.data.augment import draw_resized_crops
from tskd.data.transfer_set import TransferSet
from tskd.engine import Runtime, open_runtime
from tskd.engine.batches import to_images
from tskd.errors import UserError
from tskd.losses.pretraining import info_nce
from tskd.models.description import NetworkDescription
from tskd.models.flops import inference_flops
from tskd.models.moco import momentum_at
from tskd.models.registry import STUDENT_FILE, build_model
from tskd.recipe.schema import EngineConfig, MaeConfig, MocoConfig, PretrainConfig, load_recipe
from tskd.seeding import derive, torch_generator
from tskd.stages.distill import encoder_flops
from tskd.stages.pretrain import SHEET, CropBatches, Objective, build_objective, moco_step, pretrain, step_cost
from tskd.types import Batch

SIZE = 32
EVERY_LOOK = replace(open_runtime(EngineConfig(accelerator="cpu")), checkpoint_seconds=0)
"""Saves the state whenever it may: here after every second step."""
STUDENT = NetworkDescription("timm", {"backbone": SMALL_VIT, "decoder": "plain"}, ("lesion",), SIZE)
CONFIGS: dict[str, PretrainConfig] = {
    "mae": MaeConfig(steps=7, batch_size=4, validate_every=2, decoder_width=32, decoder_depth=1),
    "moco_v3": MocoConfig(steps=7, batch_size=4, validate_every=2, hidden=16, width=8, momentum=0.5),
}


class Killed(Exception):
    """Stands for a kill in the middle of a training."""


class Fragile:
    """The images of a transfer set; reading them kills at a given read."""

    def __init__(self, transfer: TransferSet, killed_at: int) -> None:
        self.images, self.left = transfer.images, killed_at
        self.shape = self.images.shape

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return self.images[indices]


@pytest.fixture(scope="module")
def transfer(tmp_path_factory: pytest.TempPathFactory) -> TransferSet:
    folder = tmp_path_factory.mktemp("pretrain")
    return make_transfer(folder / "transfer", make_prepared(folder / "prepared", size=SIZE))


def trained(name: str, transfer: Any, folder: Path) -> dict[str, Tensor]:
    pretrain(CONFIGS[name], STUDENT, transfer, folder, seed=1, runtime=EVERY_LOOK)
    return load_file(folder / STUDENT_FILE)


@pytest.fixture(scope="module", params=CONFIGS)
def whole(request: pytest.FixtureRequest, transfer: TransferSet, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(name, folder) of each method, trained without interruption."""
    folder = tmp_path_factory.mktemp(request.param)
    trained(request.param, transfer, folder)
    return request.param, folder


def test_killed_at_two_steps_it_ends_with_the_same_weights(whole: Any, transfer: TransferSet, tmp_path: Path) -> None:
    """The second kill comes before a new checkpoint: the same one is taken up twice."""
    name, folder = whole
    for reads in (5, 1):
        fragile = SimpleNamespace(images=Fragile(transfer, reads), names=transfer.names)
        with pytest.raises(Killed):
            trained(name, fragile, tmp_path)
    found, expected = trained(name, transfer, tmp_path), load_file(folder / STUDENT_FILE)
    assert found.keys() == expected.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


def test_the_encoder_has_learned_and_the_rest_is_as_it_began(whole: Any) -> None:
    name, folder = whole
    torch.manual_seed(derive(1, "student"))
    began = build_model(STUDENT).state_dict()
    ended = load_file(folder / STUDENT_FILE)
    same = {key for key in ended if torch.equal(ended[key], began[key])}
    kept = {key for key in ended if key.startswith("decoder.") or (name == "moco_v3" and "patch_embed" in key)}
    assert same == kept


def test_what_mae_draws_is_shown(whole: Any) -> None:
    name, folder = whole
    assert (folder / SHEET).exists() == (name == "mae")
    if name == "mae":
        with Image.open(folder / SHEET) as sheet:
            assert np.asarray(sheet).std() > 10


# --- batches ---


def batches(transfer: TransferSet, objective: Objective, *, smallest: float = 0.3) -> CropBatches:
    return CropBatches(
        transfer.images,
        transfer.names,
        batch_size=4,
        smallest=smallest,
        flip=(True, False),
        objective=objective,
        seed=3,
    )


TWO_VIEWS = Objective("test", torch.nn.Identity(), lambda module, batch: {}, views=2, photometric=1.0, tokens=5)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_make_up_the_whole_batch(transfer: TransferSet, parts: int) -> None:
    source = batches(transfer, TWO_VIEWS)
    whole, cut = source(3, 0, 1), [source(3, part, parts) for part in range(parts)]
    for field in ("images", "views", "noise"):
        assert torch.equal(torch.cat([getattr(part, field) for part in cut]), getattr(whole, field))
    assert sum((part.names for part in cut), ()) == whole.names


def test_views_and_masks_differ_between_images_views_and_steps(transfer: TransferSet) -> None:
    source = batches(transfer, TWO_VIEWS)
    first, second = source(0, 0, 1), source(1, 0, 1)
    assert first.views.shape == (4, 2, 3, SIZE, SIZE)
    assert not torch.equal(first.views[:, 0], first.views[:, 1])
    noise = torch.cat([batch.noise for batch in (first, second) if batch.noise is not None])
    assert len(noise.unique(dim=0)) == 8
    assert noise.min() >= 0
    assert noise.max() < 1


def test_views_show_the_image_they_belong_to() -> None:
    """Images of one colour each: away from the border a crop of it has that colour."""
    colours = np.arange(5, dtype=np.uint8) * 50
    pixels = np.broadcast_to(colours[:, None, None, None], (5, SIZE, SIZE, 3)).copy()
    plain = replace(TWO_VIEWS, photometric=0.0)
    source = CropBatches(pixels, [str(k) for k in range(5)], 4, 0.3, (True, False), plain, seed=3)
    batch = source(0, 0, 1)
    expected = torch.tensor([int(colours[int(name)]) for name in batch.names]) / 255
    inside = batch.views[..., 4:-4, 4:-4]
    torch.testing.assert_close(inside, expected.reshape(4, 1, 1, 1, 1).expand_as(inside))


def test_crops_lie_within_the_image_and_are_as_large_as_asked_for() -> None:
    maps = draw_resized_crops(4000, 0.2, (True, False), torch_generator("crops"))
    sides, centres = maps[:, [0, 1], [0, 1]].abs(), maps[:, :, 2]
    assert (centres.abs() + sides <= 1 + 1e-6).all()
    area, ratio = sides.prod(dim=1), sides[:, 0] / sides[:, 1]
    assert 0.2 * 0.8 < area.min() < 0.25
    assert area.max() > 0.95
    free = (sides < 1).all(dim=1)
    assert area[free].min() >= 0.2 - 1e-6
    assert 0.74 < ratio[free].min() < 0.78
    assert 1.29 < ratio[free].max() < 1.34
    assert 0.45 < (maps[:, 0, 0] < 0).float().mean() < 0.55
    assert (maps[:, 1, 1] > 0).all()
    assert not maps[:, [0, 1], [1, 0]].any()


# --- several processes, compute, mistakes ---


def test_each_process_finds_its_images_among_those_of_all() -> None:
    """The mean over processes of their losses is the loss of the whole batch."""
    queries, keys = (torch.randn(2, 6, 4, generator=torch_generator(name)) for name in ("queries", "keys"))
    losses = []
    for rank in (0, 1):
        own = slice(3 * rank, 3 * rank + 3)
        gathered = {key[own].sum().item(): key.unflatten(0, (2, 3)) for key in keys}
        fabric = SimpleNamespace(
            global_rank=rank, world_size=2, all_gather=lambda key, of=gathered: of[key.sum().item()]
        )
        answer = (tuple(query[own] for query in queries), tuple(key[own] for key in keys))
        step = moco_step(0.2, Runtime(cast("Any", fabric)))
        views = torch.zeros(3, 2, 3, 4, 4)
        losses.append(step(cast("Any", lambda *_, answer=answer: answer), Batch(views[:, 0], views))["loss"])
    expected = info_nce(queries[0], keys[1], temperature=0.2) + info_nce(queries[1], keys[0], temperature=0.2)
    assert torch.stack(losses).mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_mae_costs_a_fraction_and_the_momentum_encoder_is_told_apart() -> None:
    """Of the encoder: MAE runs a quarter of the tokens, MoCo v3 two views forward and backward and two forward."""
    student = build_model(replace(STUDENT, image_size=128))
    student.decoder.requires_grad_(False)
    encoder = encoder_flops(student, 128)
    mae, moco = (step_cost(config, replace(STUDENT, image_size=128)) for config in CONFIGS.values())
    assert 0.25 * encoder < mae.student < 0.4 * encoder
    assert mae.teacher == 0
    assert 1.9 * encoder < moco.student < 2.2 * encoder
    forward = inference_flops(cast("Any", student).encoder, 128)
    assert 2 * forward < moco.teacher < 2.2 * forward


def test_the_momentum_reaches_one_at_the_end_of_the_training(
    transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The schedule goes by the steps that are done, which the budget may have cut, and counts each of them."""
    built: list[Objective] = []

    def build(*arguments: Any) -> Objective:
        built.append(build_objective(*arguments))
        return built[-1]

    monkeypatch.setattr("tskd.stages.pretrain.build_objective", build)
    config = CONFIGS["moco_v3"].model_copy(update={"steps": 3})
    pretrain(config, STUDENT, transfer, tmp_path, seed=1, runtime=EVERY_LOOK)
    module: Any = built[0].module
    assert (module.first_momentum, int(module.updates)) == (0.5, 3)
    assert float(momentum_at(module.updates, module.steps, module.first_momentum)) == 1


def test_no_image_is_told_from_itself(transfer: TransferSet) -> None:
    """An image twice in a batch would be its own negative; what is left of an epoch is dropped."""
    objective = build_objective(CONFIGS["moco_v3"], build_model(STUDENT))
    size = len(transfer.images) * 2 // 3  # every second batch crosses the end of an epoch
    batches = CropBatches(transfer.images, transfer.names, size, 0.5, (False, False), objective, seed=0)
    for step in range(6):
        assert len(set(batches(step, 0, 1).names)) == size


def test_too_few_images_for_a_batch_are_told(
    transfer: TransferSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = len(transfer.images)
    config = CONFIGS["moco_v3"].model_copy(update={"steps": 1, "batch_size": count + 1})
    pretrain(config, STUDENT, transfer, tmp_path, seed=1, runtime=EVERY_LOOK)
    assert f"Set moco_v3.batch_size to at most {count}" in capsys.readouterr().err


def test_cutting_the_batch_of_a_contrast_is_refused() -> None:
    with pytest.raises(UserError, match=r"accumulate must be 1: lower batch_size"):
        load_recipe(None, ["moco_v3.accumulate=2"])
    with pytest.raises(UserError, match=r"moco_v3.batch_size"):
        load_recipe(None, ["moco_v3.batch_size=1"])


@pytest.mark.parametrize(
    "override", ["mae.mask=0", "mae.mask=1", "mae.decoder_width=30", "moco_v3.temperature=0", "mae.crop=0"]
)
def test_settings_that_make_no_sense_are_refused(override: str) -> None:
    with pytest.raises(UserError, match=override.partition("=")[0]):
        load_recipe(None, [override])


def test_images_of_a_batch_are_those_named(transfer: TransferSet) -> None:
    batch = batches(transfer, TWO_VIEWS)(0, 0, 1)
    rows = [transfer.names.index(name) for name in batch.names]
    assert torch.equal(batch.images, to_images(transfer.images[rows]))
