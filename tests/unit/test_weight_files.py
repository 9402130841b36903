"""What a weight file is told to be, what is refused, and what pixels its network sees."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import published
from tests.made_up import SMALL_VIT
from tskd.errors import UserError
from tskd.experiment.opening import open_run
from tskd.experiment.preflight import check_networks, remarks_on_weights
from tskd.models import weight_report
from tskd.models.description import NetworkDescription
from tskd.models.pixels import Normalise
from tskd.models.registry import adapt, build_model, load_model, save_model
from tskd.models.sam_files import under_transformers_names
from tskd.models.weight_files import identify, require_pixels
from tskd.recipe.schema import TeacherConfig, load_recipe
from tskd.stages.teacher import bare_digest, choose_teacher, describe_teacher, network

State = dict[str, Tensor]


def write(path: Path, content: published.Shapes | State, *, wrapper: str = "") -> Path:
    """Write tensors (or random ones of the shapes) as the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if all(isinstance(value, tuple) for value in content.values()):
        content = published.fill(content)  # type: ignore[arg-type]
    if path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in content.items()})  # type: ignore[union-attr]
    elif path.suffix == ".safetensors":
        save_file(content, path)  # type: ignore[arg-type]
    else:
        torch.save({wrapper: content, "epoch": 3, "args": argparse.Namespace(lr=1)} if wrapper else content, path)
    return path


def small_sam(**changes: Any) -> published.Shapes:
    return published.meta_sam(**{**published.SMALL_SAM, **changes})


def test_the_shapes_written_down_are_as_many_as_published() -> None:
    assert len(published.meta_sam()) == 314
    large = published.meta_sam(width=1024, depth=24, heads=16, everywhere=(5, 11, 17, 23))
    huge = published.meta_sam(width=1280, depth=32, heads=16, everywhere=(7, 15, 23, 31))
    counts = [sum(int(np.prod(shape)) for shape in shapes.values()) for shapes in (published.meta_sam(), large, huge)]
    # the sizes of Meta's three files in bytes, less the few hundred bytes a tensor that torch's archive adds
    for numbers, size in zip(counts, (375_042_383, 1_249_524_607, 2_564_550_879), strict=True):
        assert 0 < size - 4 * numbers < 1e-3 * size


@pytest.mark.parametrize(
    ("name", "shapes", "wrapper", "title", "backbone", "pixels"),
    [
        ("sam_mini.pth", small_sam(), "", "SAM of width 32", None, "imagenet"),
        ("MedSAM_mini.pth", small_sam(), "", "MedSAM of width 32", None, "minmax"),
        ("mobile_sam.pt", published.mobile_sam(), "", "MobileSAM", "tiny_vit_5m_224", "imagenet"),
        ("sam2.pt", published.sam2(), "model", "SAM 2 (Meta's file)", "sam2_hiera_tiny", "imagenet"),
        ("sam2.pt", published.sam2(stages=(1, 2, 11, 2)), "model", "SAM 2", "sam2_hiera_small", "imagenet"),
        ("v2.pth", published.dinov2(), "", "DINOv2", "vit_small_patch14_dinov2", "imagenet"),
        ("v2.pth", published.dinov2(registers=4), "teacher", "DINOv2", "vit_small_patch14_reg4_dinov2", "imagenet"),
        ("v3.pth", published.dinov3(), "", "DINOv3", "vit_small_patch16_dinov3_qkvb", "imagenet"),
        ("meta.pth", published.deit(), "model", "ViT", "deit_tiny_patch16_224", "imagenet"),
        ("ti16.npz", published.augreg(), "", "ViT (JAX", "vit_tiny_patch16_224", "half"),
        ("rad.pt", published.radimagenet_resnet50(), "", "RadImageNet", "resnet50", "half"),
    ],
)  # fmt: skip
def test_names_and_shapes_tell_what_a_file_is(
    tmp_path: Path, name: str, shapes: published.Shapes, wrapper: str, title: str, backbone: str | None, pixels: str
) -> None:
    known = identify(write(tmp_path / name, shapes, wrapper=wrapper))
    assert known.title.startswith(title)
    assert (known.backbone, known.pixels, known.doubt) == (backbone, pixels, "")
    assert known.tensors == len(shapes)
    assert ("epoch" in known.unused) == bool(wrapper)


@pytest.mark.parametrize(
    ("backbone", "prefix"),
    [("resnet18", ""), ("resnet50", "module.backbone."), ("swin_tiny_patch4_window7_224", ""), ("convnext_atto", ""),
     ("sam2_hiera_tiny", ""), ("vit_small_patch16_dinov3", ""), ("tf_efficientnet_lite0", "")],
)  # fmt: skip
def test_timms_own_files_are_matched_by_their_shapes(tmp_path: Path, backbone: str, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in timm.create_model(backbone).state_dict().items()}
    # a folder as timm's on the hub, without its config.json; lite0 has a twin that pads otherwise, so its name decides
    place = tmp_path / (backbone if "lite0" in backbone else "weights")
    known = identify(write(place / "model.safetensors", state).parent)
    assert known.backbone == backbone
    assert known.pixels == ("half" if "lite0" in backbone else "imagenet")


def test_twins_that_pad_otherwise_have_to_be_named(tmp_path: Path) -> None:
    file = write(tmp_path / "b0.pth", timm.create_model("efficientnet_b0").state_dict())
    with pytest.raises(UserError, match=r"b0\.pth fits efficientnet_b0 and tf_efficientnet_b0.* teacher\.name=timm/"):
        describe_teacher(TeacherConfig(weights=str(file)), download=False)
    named = TeacherConfig(weights=str(file), name="timm/tf_efficientnet_b0", pixels="imagenet")
    assert describe_teacher(named, download=False).arguments["backbone"] == "tf_efficientnet_b0"


@pytest.mark.parametrize("name", ["vit/model.safetensors", "dinov3_vits16_pretrain_sat493m-x.safetensors"])
def test_statistics_without_a_name_are_the_numbers_themselves(name: str, tmp_path: Path) -> None:
    """A network that states its own was given timm's default without a word."""
    mean, std = [0.43, 0.411, 0.296], [0.213, 0.156, 0.143]
    file = write(tmp_path / name, timm.create_model(SMALL_VIT).state_dict())
    if file.parent != tmp_path:
        stated = {"architecture": SMALL_VIT, "pretrained_cfg": {"mean": mean, "std": std}}
        (file.parent / "config.json").write_text(json.dumps(stated))
    known = identify(file, SMALL_VIT)
    assert known.pixels == "0.43,0.411,0.296/0.213,0.156,0.143"
    norm = Normalise.of(known.pixels)
    np.testing.assert_allclose([norm.mean.flatten(), norm.std.flatten()], [mean, std], rtol=1e-6)
    assert load_recipe(None, [f"teacher.pixels={known.pixels}"]).teacher.pixels == known.pixels
    for wrong in ("0.4,0.4/0.2,0.2", "imagnet", "0.4,0.4,0.4/0.2,0,0.2"):
        with pytest.raises(UserError, match="or give mean and deviation of red, green and blue"):
            load_recipe(None, [f"teacher.pixels={wrong}"])


def test_a_backbone_that_pads_otherwise_than_config_json_says_is_refused(tmp_path: Path) -> None:
    """The same tensors in a network with another padding: logits are others, and nothing shows it."""
    file = write(tmp_path / "model.safetensors", timm.create_model("tf_efficientnet_b0").state_dict())
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "tf_efficientnet_b0"}))
    with pytest.raises(UserError, match=r"says tf_efficientnet_b0, which has the tensors of efficientnet_b0"):
        identify(file, "efficientnet_b0")
    assert identify(file, "tf_efficientnet_b0").backbone == "tf_efficientnet_b0"


def test_an_adapted_teacher_is_not_put_on_other_weights(tmp_path: Path) -> None:
    """Its own tensors are differences to a file that may be another by now, of the same names and shapes."""
    file = write(tmp_path / "base.safetensors", timm.create_model(SMALL_VIT).state_dict())
    source = choose_teacher(
        TeacherConfig(weights=str(file), name=f"timm/{SMALL_VIT}", pixels="half"), ("a",), 32, download=False
    )
    model = build_model(source.description)
    adapt(model, source.description)
    (tmp_path / "teacher").mkdir()
    save_model(tmp_path / "teacher", model, source.description, file="teacher.safetensors")
    load_model(tmp_path / "teacher")
    write(file, timm.create_model(SMALL_VIT).state_dict())
    with pytest.raises(
        UserError, match=r"base\.safetensors is not the weight file that the model in .* was adapted from"
    ):
        load_model(tmp_path / "teacher")


def test_pixels_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path / "weights.pth", published.deit())
    known = identify(file)
    assert {known.backbone, *known.twins} == {"vit_tiny_patch16_224", "deit_tiny_patch16_224"}
    with pytest.raises(UserError, match=r"weights\.pth: .* pixels half and imagenet.* Set student\.pixels"):
        check_networks(load_recipe(None, ["method=imagenet", f"student.weights={file}"]))
    assert require_pixels(known, "imagenet", "student.pixels") == "imagenet"
    check_networks(load_recipe(None, ["method=imagenet", f"student.weights={file}", "student.pixels=half"]))
    told = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"tag": "mine", "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225], "license": "mit"}}  # fmt: skip
    (tmp_path / "told").mkdir()
    (tmp_path / "told/config.json").write_text(json.dumps(told))
    known = identify(write(tmp_path / "told/model.safetensors", published.deit()))
    assert known.inferred == ""
    assert (known.title, known.pixels, known.doubt, known.licence) == (
        "ViT: vit_tiny_patch16_224.mine", "imagenet", "", "mit",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shapes", "wrapper", "pixels", "choices"),
    [
        ("medsam_vit_b.pth", small_sam(), "", "minmax", ("imagenet", "minmax")),
        ("sam_vit_b_01ec64.pth", small_sam(), "", "imagenet", ("imagenet", "minmax")),
        ("MedSAM/model.pth", small_sam(), "", "minmax", ("imagenet", "minmax")),
        ("private.pth", published.deit(), "model", "imagenet", ("half", "imagenet")),
        ("my_augreg.pth", published.deit(), "", "half", ("half", "imagenet")),
        ("vit_tiny_patch16_224.augreg_in21k.pth", published.deit(), "", "half", ("half", "imagenet")),
    ],
)
def test_what_a_name_alone_tells_is_said_to_be_inferred_until_it_is_set(
    tmp_path: Path, name: str, shapes: published.Shapes, wrapper: str, pixels: str, choices: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The tensors are equal, so a renamed file would train on other pixels without a word."""
    file = write(tmp_path / name, shapes, wrapper=wrapper)
    said = weight_report.as_text(report := weight_report.describe(file))
    assert (report["pixels"], set(report["pixels_choices"])) == (pixels, set(choices))
    overruled = f"teacher.pixels{'' if shapes == small_sam() else ' or student.pixels'}="
    assert all(word in said for word in ("inferred: ", overruled, *choices))
    settings = [f"teacher.weights={file}", "data.image_size=64"]
    told = " ".join(remarks_on_weights(load_recipe(None, settings)))
    assert told.startswith(f"{Path(name).name}: pixels {pixels} are inferred (")
    assert "--set teacher.pixels=" in told
    for silent in (f"teacher.pixels={pixels}", "method=scratch"):
        assert remarks_on_weights(load_recipe(None, [*settings, silent])) == ()
    open_run(load_recipe(None, settings), tmp_path / "out")
    assert told in capsys.readouterr().err


def test_a_students_pixels_are_said_to_be_inferred_too(tmp_path: Path) -> None:
    file = write(tmp_path / "private.pth", published.deit(), wrapper="model")
    settings = [f"student.weights={file}", "method=imagenet"]
    (told,) = remarks_on_weights(load_recipe(None, settings))
    assert told.endswith("If that is wrong, --set student.pixels=half|imagenet")
    assert remarks_on_weights(load_recipe(None, [*settings, "student.pixels=half"])) == ()


@pytest.mark.parametrize(
    ("name", "shapes"),
    [("v2.pth", published.dinov2()), ("ti16.npz", published.augreg()), ("mobile_sam.pt", published.mobile_sam())],
)
def test_what_the_tensors_tell_is_not_said_to_be_inferred(tmp_path: Path, name: str, shapes: published.Shapes) -> None:
    assert identify(write(tmp_path / name, shapes)).inferred == ""


@pytest.mark.parametrize(
    ("shapes", "name", "told"),
    [
        (small_sam(), "timm/vit_small_patch14_dinov2", r"is SAM of width 32.*, not vit_small_patch14_dinov2: leave"),
        (published.dinov2(), "sam", r"is DINOv2 \(official\).*: leave teacher\.name out, or set teacher\.name=timm/v"),
        (published.dinov2(), "timm/resnet18", r"does not fit resnet18: .* missing .* unexpected .*It is DINOv2"),
        ({"a.weight": (3, 3)}, "auto", r"looks like network of timm, but no network"),
        (small_sam() | {"image_encoder.pos_embed": (1, 8, 8, 33)}, "auto", r"not a complete SAM: 1 of another shape"),
    ],
)  # fmt: skip
def test_a_name_that_contradicts_the_file_is_refused_before_any_work(
    tmp_path: Path, shapes: published.Shapes, name: str, told: str
) -> None:
    file = write(tmp_path / "file.pth", shapes)
    with pytest.raises(UserError, match=told):
        check_networks(load_recipe(None, [f"teacher.name={name}", f"teacher.weights={file}", "data.image_size=64"]))


def test_what_a_sam_file_lacks_is_listed(tmp_path: Path) -> None:
    shapes = small_sam()
    del shapes["mask_decoder.iou_prediction_head.layers.1.bias"]
    with pytest.raises(UserError, match=r"1 missing \(mask_decoder\.iou_prediction_head\.layers\.0\.bias\)"):
        identify(write(tmp_path / "sam.pth", shapes))


@pytest.mark.parametrize(
    ("backbone", "lost"),
    [("vit_tiny_patch16_224", "norm.weight"), ("vit_small_patch14_dinov2", "norm.bias")],
)  # fmt: skip
def test_a_vit_without_its_final_norm_is_refused_by_its_names_alone(tmp_path: Path, backbone: str, lost: str) -> None:
    """It was called fitting, and refused after the data had been prepared, when it was loaded."""
    state = timm.create_model(backbone, num_classes=0).state_dict()
    del state[lost]
    file = write(tmp_path / "cut.pth", state)
    told = rf"1 missing \({lost}\)"
    with pytest.raises(UserError, match=told):
        identify(file)
    with pytest.raises(UserError, match=told):
        check_networks(load_recipe(None, [f"teacher.weights={file}", f"teacher.name=timm/{backbone}"]))
    with pytest.raises(UserError, match=told):
        check_networks(load_recipe(None, [f"student.weights={file}", f"student.backbone={backbone}",
                                          "student.pixels=half", "method=imagenet"]))  # fmt: skip


def test_what_only_a_classification_has_may_be_missing(tmp_path: Path) -> None:
    """Files of a backbone's features alone, as timm's hub and detectors share them, lack what stands behind them."""
    state = timm.create_model("convnext_atto", num_classes=0).state_dict()
    file = write(tmp_path / "features.pth", {k: v for k, v in state.items() if not k.startswith("head")})
    assert identify(file).backbone == "convnext_atto"


@pytest.mark.parametrize("name", ["sam_vit_b_01ec64.pth", "model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("metas", [True, False])
def test_a_folder_with_sam_and_nothing_else_is_as_good_as_its_file(tmp_path: Path, name: str, metas: bool) -> None:
    state = published.fill(small_sam())
    copied = {name: tensor.clone() for name, tensor in under_transformers_names(state).items()}
    file = write(tmp_path / "mine" / name, state if metas else copied)
    for setting in ("auto", "sam"):
        of_file, of_folder = (
            choose_teacher(TeacherConfig(weights=str(place), name=setting), ("lesion",), 64, download=False)
            for place in (file, file.parent)
        )
        assert of_file.description == of_folder.description
        assert of_file.digest == of_folder.digest
    assert identify(file) == identify(file.parent)


def test_metas_file_beside_nothing_is_the_default_sam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "sam_vit_b_01ec64.pth", small_sam())
    monkeypatch.setenv("TSKD_WEIGHTS", str(tmp_path))
    for config in (TeacherConfig(), TeacherConfig(name="sam"), TeacherConfig(weights="sam_vit_b_01ec64.pth")):
        source = choose_teacher(config, ("lesion",), 64, download=False)
        assert source.description.arguments["source"] == str(file)
        assert source.description.image_size == 512


@pytest.mark.parametrize(("size", "side"), [(64, 70), (112, 112), (128, 126)])
def test_patches_of_14_pixels_are_never_cut(tmp_path: Path, size: int, side: int) -> None:
    """The network works at the nearest side that its patches tile, whatever the images' size."""
    file = write(tmp_path / "v2.pth", published.dinov2())
    source = choose_teacher(TeacherConfig(weights=str(file), image_size=size), ("lesion",), 64, download=False)
    model: Any = build_model(source.description)
    assert (source.description.image_size, model.image_size) == (size, side)
    assert model(torch.rand(1, 3, size, size)).logits.shape[-1] == size


def test_what_a_file_was_taken_for_is_in_the_teachers_fingerprint(tmp_path: Path) -> None:
    """The same tensors with other pixels, or as another network that pads otherwise, are another teacher."""
    file = write(tmp_path / "b0.pth", timm.create_model("efficientnet_b0").state_dict())
    said = [
        TeacherConfig(weights=str(file), name=f"timm/{name}", pixels=pixels)  # type: ignore[arg-type]
        for name in ("efficientnet_b0", "tf_efficientnet_b0")
        for pixels in ("imagenet", "half")
    ]
    sources = [choose_teacher(config, ("lesion",), 64, download=False) for config in said]
    assert len({source.digest for source in sources}) == 1
    assert len({network(source) for source in sources}) == len({bare_digest(source) for source in sources}) == 4


def test_each_image_is_stretched_by_itself() -> None:
    normalise = Normalise.of("minmax")
    dark, bright = torch.rand(1, 3, 8, 8) * 0.2 + 0.1, torch.rand(1, 3, 8, 8)
    both = normalise(torch.cat((dark, bright)))
    torch.testing.assert_close(both[:1], normalise(dark * 3))
    assert (both.amin((1, 2, 3)).tolist(), both.amax((1, 2, 3)).tolist()) == ([0, 0], [1, 1])
    assert torch.equal(normalise(torch.full((1, 3, 4, 4), 0.7)), torch.zeros(1, 3, 4, 4))


def test_a_saved_model_remembers_its_pixels(tmp_path: Path) -> None:
    arguments = {"backbone": SMALL_VIT, "decoder": "plain", "pixels": "minmax"}
    description = NetworkDescription("timm", arguments, ("a",), 32)
    save_model(tmp_path, build_model(description).eval(), description, file="model.safetensors")
    model, images = load_model(tmp_path), torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(model(images).logits, model(images / 2).logits, rtol=1e-3, atol=1e-4)
