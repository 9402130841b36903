"""A student that cannot be built, filled or trained as asked is refused from the settings alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from tests.made_up import SMALL_VIT
from tskd.errors import UserError
from tskd.experiment.preflight import check_networks
from tskd.models.weights import efficientnet_lite0_path
from tskd.recipe.schema import Recipe, TeacherConfig, load_recipe
from tskd.stages.teacher import describe_teacher


def recipe(*overrides: str, backbone: str = SMALL_VIT) -> Recipe:
    return load_recipe(None, [f"student.backbone={backbone}", "data.image_size=32", *overrides])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(timm.create_model(SMALL_VIT).state_dict(), path)
    return path


@pytest.mark.parametrize("who", ["method=mae", "baselines=[scratch, mae]"])
def test_mae_needs_a_vision_transformer(who: str) -> None:
    check_networks(recipe(who))
    check_networks(recipe(backbone="resnet10t"))
    for other in ("resnet10t", "vit_tiny_r_s16_p8_224"):
        with pytest.raises(UserError, match=r"plain vision transformer, which student\.backbone is not"):
            check_networks(recipe(who, backbone=other))


@pytest.mark.parametrize("who", ["method=imagenet", "baselines=[imagenet]", "student.initialisation=weights"])
def test_weights_have_to_fit_the_backbone_where_they_are_used(who: str, weights: Path) -> None:
    given = f"student.weights={weights}"
    check_networks(recipe(who, given))
    check_networks(recipe(given, backbone="resnet10t"))
    with pytest.raises(UserError, match=r"does not fit resnet10t: \d+ missing \(bn1"):
        check_networks(recipe(who, given, backbone="resnet10t"))


def test_a_position_table_with_another_number_of_class_tokens_does_not_fit(tmp_path: Path) -> None:
    state = timm.create_model(SMALL_VIT).state_dict()
    state["pos_embed"] = state["pos_embed"][:, :-2].contiguous()
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match=r"cannot be brought to that network's shapes.* Give weights of this backbone"):
        check_networks(recipe("method=imagenet", f"student.weights={tmp_path / 'odd.safetensors'}"))


@pytest.mark.skipif(efficientnet_lite0_path() is None, reason="the offline weights are not installed")
def test_the_installed_weights_are_those_of_one_backbone() -> None:
    check_networks(recipe("method=imagenet", "student.weights=offline", backbone="tf_efficientnet_lite0"))
    with pytest.raises(UserError, match=r"are those of tf_efficientnet_lite0, not of resnet10t\. Give a weight file"):
        check_networks(recipe("method=imagenet", "student.weights=offline", backbone="resnet10t"))


def test_a_home_folder_is_written_as_people_write_it(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(weights.parent))
    check_networks(recipe("method=imagenet", f"student.weights=~/{weights.name}"))


def test_a_teacher_or_student_that_cannot_take_its_images_is_refused() -> None:
    fits = ("teacher.name=timm/efficientformer_l1", "teacher.image_size=224")
    anew = ("teacher.weights=random", "teacher.adaptation=full")
    check_networks(recipe(*fits, *anew))
    with pytest.raises(UserError, match=r"teacher\.name=timm/efficientformer_l1 needs teacher\.weights"):
        check_networks(recipe(*fits))
    with pytest.raises(UserError, match=r"gradient_checkpointing is for SAM and timm networks without batch norm"):
        check_networks(recipe("teacher.name=timm/resnet10t", "teacher.gradient_checkpointing=true", *anew))
    with pytest.raises(UserError, match=r"'efficientformer_l1' cannot take images of 32 px .* can take 224 px"):
        check_networks(recipe(fits[0]))
    with pytest.raises(UserError, match=r"'efficientformer_l1' cannot take images of 32 px .* can take 224 px"):
        check_networks(recipe(backbone="efficientformer_l1"))
    with pytest.raises(UserError, match=r"VGG has neither attention nor 1x1 convolutions for LoRA adapters"):
        check_networks(recipe("teacher.name=timm/vgg11"))
    check_networks(recipe("teacher.name=timm/vgg11", *anew))
    with pytest.raises(UserError, match=r"timm has no backbone 'resnet99'\. Similar names: "):
        check_networks(recipe("teacher.name=timm/resnet99"))


def test_the_diffusion_model_has_to_suit_the_images_where_it_is_asked_for() -> None:
    check_networks(recipe("diffusion.preset=base"))
    with pytest.raises(UserError, match=r"diffusion\.image_size \(diffusion\.preset base\).* nearest that do"):
        check_networks(recipe("diffusion.preset=base", "diffusion.image_size=48", "transfer.synthetic=8"))


@pytest.mark.parametrize("who", ["control.enabled=true", "method=control", "baselines=[control_pseudo]"])
def test_a_u_net_needs_two_pixels_at_its_lowest_level(who: str) -> None:
    """MONAI's instance norm refuses a single one, and that in the first step, after other models have trained."""
    given = ("control.enabled=false", who)
    check_networks(recipe(*given, "control.channels=[4, 4, 4, 4, 4]"))
    with pytest.raises(UserError, match=r"control\.channels: 6 levels halve data\.image_size 5 times, and 32"):
        check_networks(recipe(*given, "control.channels=[4, 4, 4, 4, 4, 4]"))
    check_networks(recipe("control.enabled=false", "control.channels=[4, 4, 4, 4, 4, 4]"))


@pytest.mark.parametrize("who", ["method=unet", "baselines=[unet]"])
def test_the_channels_of_the_large_u_net_are_looked_at_where_it_is_asked_for(who: str) -> None:
    check_networks(recipe(who))
    check_networks(recipe("unet.channels=[4, 4, 4, 4, 4, 4]"))
    with pytest.raises(UserError, match=r"unet\.channels: 6 levels halve data\.image_size 5 times, and 32"):
        check_networks(recipe(who, "unet.channels=[4, 4, 4, 4, 4, 4]"))


@pytest.mark.parametrize("who", ["method=unet_imagenet", "baselines=[unet_imagenet]"])
def test_the_u_net_from_imagenet_needs_weights_that_fit_and_an_encoder_of_several_scales(
    who: str, weights: Path, tmp_path: Path
) -> None:
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet.safetensors")
    fits = ("unet_imagenet.backbone=resnet10t", f"unet_imagenet.weights={tmp_path / 'resnet.safetensors'}")
    check_networks(recipe(who, *fits))
    with pytest.raises(UserError, match=r"does not fit resnet10t: \d+ missing"):
        check_networks(recipe(who, fits[0], f"unet_imagenet.weights={weights}"))
    with pytest.raises(UserError, match=r"decoder of a U-Net joins features of several sizes.* or another backbone"):
        check_networks(recipe(who, f"unet_imagenet.backbone={SMALL_VIT}", f"unet_imagenet.weights={weights}"))
    check_networks(recipe(fits[0], f"unet_imagenet.weights={weights}"))


def test_a_teachers_decoder_has_to_fit_it() -> None:
    anew = ("teacher.weights=random", "teacher.adaptation=full")
    for decoder in ("auto", "detail", "unet"):
        check_networks(recipe("teacher.name=timm/resnet10t", f"teacher.decoder={decoder}", *anew))
    with pytest.raises(UserError, match=rf"teacher\.decoder=unet .* {SMALL_VIT} gives one: leave teacher\.decoder out"):
        check_networks(recipe(f"teacher.name=timm/{SMALL_VIT}", "teacher.decoder=unet", *anew))
    with pytest.raises(UserError, match=r"teacher\.decoder is for teachers that are not SAM.* leave it out"):
        describe_teacher(TeacherConfig(name="sam", decoder="unet"), download=False)


@pytest.mark.parametrize("cut", ["distill.accumulate=4", "engine.devices=4"])
def test_a_part_of_a_batch_has_two_images_to_mix(cut: str) -> None:
    """An image that is mixed with itself stays as it is, and nothing would say so."""
    check_networks(recipe("distill.mix=1", "distill.batch_size=8", cut))
    check_networks(recipe("distill.batch_size=4", cut))
    with pytest.raises(UserError, match=r"distill\.batch_size=4: distill\.mix=1 .* Choose 8 or more"):
        check_networks(recipe("distill.mix=1", "distill.batch_size=4", cut))


@pytest.mark.parametrize("section", ["diffusion", "distill", "mae", "moco_v3"])
def test_patience_is_refused_where_nothing_is_validated(section: str) -> None:
    """It changed the artifact's name and nothing else."""
    check_networks(recipe(f"{section}.validate_every=7", "finetune.patience=3", "control.patience=3"))
    with pytest.raises(UserError, match=rf"^{section}\.patience: nothing is validated"):
        check_networks(recipe(f"{section}.patience=3"))
