"""How a plain vision transformer cuts an image, where its tokens lie, and what its decoder is fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tests.made_up import SMALL_VIT
from tskd.errors import UserError
from tskd.experiment.methods import check_names
from tskd.models.backbones import NO_ENCODER, patch_for
from tskd.models.description import NetworkDescription
from tskd.models.registry import build_model
from tskd.models.timm_segmenter import TimmSegmenter
from tskd.recipe.schema import StudentConfig, load_recipe
from tskd.stages.students import describe_student

VIT = "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("size", "patch"),
    [(32, 2), (48, 3), (64, 4), (96, 6), (112, 8), (128, 8), (192, 12), (208, 13), (224, 16), (240, 16), (512, 16)],
)
def test_patches_are_the_largest_that_give_196_tokens(size: int, patch: int) -> None:
    assert patch_for(VIT, size) == patch
    assert (size // patch) ** 2 >= 196
    assert patch == 16 or all((size // side) ** 2 < 196 for side in range(patch + 1, 17) if size % side == 0)


@pytest.mark.parametrize("backbone", ["resnet10t", "vit_tiny_r_s16_p8_224", NO_ENCODER])
def test_other_backbones_cut_images_their_own_way(backbone: str) -> None:
    assert patch_for(backbone, 128) is None


def test_every_allowed_size_of_a_student_can_be_cut() -> None:
    for size in range(32, 1025, 16):
        student = describe_student(StudentConfig(), weights=None, classes=["one"], image_size=size)
        assert size % student.arguments["patch"] == 0


def test_a_stated_patch_is_taken_and_one_that_does_not_divide_the_image_refused() -> None:
    student = describe_student(StudentConfig(patch=32), weights=None, classes=["one"], image_size=64)
    model: Any = build_model(student)
    assert model.encoder.model.patch_embed.grid_size == (2, 2)
    with pytest.raises(UserError, match=r"patch is for plain vision transformers, and resnet10t is none"):
        TimmSegmenter("resnet10t", "detail", classes=1, image_size=64, patch=8)


def test_positions_start_as_a_map_of_the_image() -> None:
    """Tokens side by side are more alike than any others; a random table knows no neighbours."""
    table = TimmSegmenter(SMALL_VIT, "plain", classes=1, image_size=64).encoder.model.pos_embed.detach()[0]
    assert table[0].abs().max() == 0, "the class token has no place"
    grid = F.normalize(table[1:], dim=1).reshape(8, 8, -1)
    alike = torch.einsum("c,ijc->ij", grid[3, 4], grid)
    alike[3, 4] = -1
    assert divmod(int(alike.argmax()), 8) in {(2, 4), (4, 4), (3, 3), (3, 5)}
    assert alike[3, 5] > alike[3, 7]
    assert alike[4, 4] > alike[7, 4]


def test_features_are_normed_by_the_transformers_own_norm() -> None:
    torch.manual_seed(0)
    model = TimmSegmenter(SMALL_VIT, "plain", classes=1, image_size=32).eval()
    with torch.inference_mode():
        plain = model.encode(torch.rand(1, 3, 32, 32))
        model.encoder.model.norm.weight.fill_(3)
        scaled = model.encode(torch.rand(1, 3, 32, 32))
    for feature, larger in zip(plain, scaled, strict=True):
        assert feature.mean(dim=1).abs().max() < 1e-5
        assert feature.std(dim=1, unbiased=False).sub(1).abs().max() < 1e-3
        assert larger.std(dim=1, unbiased=False).sub(3).abs().max() < 1e-2


def test_weights_of_larger_patches_answer_alike_on_what_both_can_see(tmp_path: Path) -> None:
    """Patches of 8 take over kernels of 16: a kernel that reads the shrunken patch reads the small one alike."""
    kernels = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    shrink = torch.stack(
        [F.interpolate(one.reshape(1, 1, 16, 16), (8, 8), mode="bicubic", antialias=True) for one in torch.eye(256)]
    ).reshape(256, 64)
    larger = (kernels.reshape(64, 3, 64) @ shrink.T).reshape(64, 3, 16, 16)
    state = timm.create_model(SMALL_VIT, patch_size=16, img_size=64).state_dict() | {"patch_embed.proj.weight": larger}
    save_file(state, tmp_path / "p16.safetensors")
    arguments = {"backbone": SMALL_VIT, "decoder": "plain", "patch": 8}
    student: Any = build_model(NetworkDescription("timm", arguments, ("one",), 64, str(tmp_path / "p16.safetensors")))
    torch.testing.assert_close(student.encoder.model.patch_embed.proj.weight.detach(), kernels, rtol=1e-3, atol=1e-3)


def test_without_an_encoder_the_skip_is_all_there_is() -> None:
    torch.manual_seed(0)
    model = TimmSegmenter(NO_ENCODER, "detail", classes=2, image_size=64)
    images = torch.rand(2, 3, 50, 70)
    features, logits = model(images)
    assert logits.shape == (2, 2, 50, 70)
    assert [plane.abs().max() for plane in features] == [0]
    assert torch.equal(logits, model.decode(images, [0 * plane for plane in features]))
    assert not torch.equal(logits, model.decode(images, features, skip=False))
    with pytest.raises(UserError, match=r"backbone none leaves the decoder's skip alone; plain has none, detail has"):
        TimmSegmenter(NO_ENCODER, "plain", classes=1, image_size=64)


@pytest.mark.parametrize("who", ["method=agnostic_kd", "baselines=[mae]", "method=moco_v3"])
def test_without_an_encoder_there_is_none_to_pre_train(who: str) -> None:
    with pytest.raises(UserError, match=r"starts from a trained encoder, and with student.backbone=none there is none"):
        check_names(load_recipe(None, ["student.backbone=none", who]))
    check_names(load_recipe(None, ["student.backbone=none", "method=scratch"]))
