"""Our prompt-free SAM against transformers' own forward, at the native and at other sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from tskd.errors import UserError
from tskd.models.lora import set_adaptation
from tskd.models.pixels import PIXELS
from tskd.models.sam import SamSegmenter, load_sam

NATIVE = 128


def tiny_sam(image_size: int = NATIVE, layers: int = 4) -> SamModel:
    torch.manual_seed(0)
    vision = SamVisionConfig(
        hidden_size=32,
        output_channels=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=image_size,
        window_size=3,
        global_attn_indexes=list(range(1, layers, 2)),
        num_pos_feats=8,
        mlp_dim=64,
    )
    prompt = SamPromptEncoderConfig(hidden_size=16, image_size=image_size)
    decoder = SamMaskDecoderConfig(hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16)
    sam = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    for parameter in sam.parameters():
        nn.init.normal_(parameter, std=0.3)  # SAM's tables start at zero and would hide wrong interpolation
    return sam.eval()


def images(size: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in PIXELS["imagenet"])
    return (images - mean) / std


@torch.no_grad()
def assert_same_answer(model: SamSegmenter, reference: SamModel, size: int) -> None:
    ours = model.eval()(images(size))
    vision = reference.vision_encoder(normalised(images(size)), output_hidden_states=True)
    theirs = reference(image_embeddings=vision.last_hidden_state, multimask_output=True)
    blocks = reference.config.vision_config.global_attn_indexes
    expected = [vision.hidden_states[-len(reference.vision_encoder.layers) :][index] for index in blocks]
    for ours_block, block in zip(ours.features[:-1], expected, strict=True):
        torch.testing.assert_close(ours_block, block.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.features[-1], vision.last_hidden_state, rtol=1e-4, atol=1e-5)
    upsampled = F.interpolate(theirs.pred_masks[:, 0], size=(size, size), mode="bilinear")
    assert upsampled.std() > 1e-2
    torch.testing.assert_close(ours.logits, upsampled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "layers"), [(NATIVE, 4), pytest.param(1024, 2, marks=pytest.mark.slow)])
def test_at_the_native_size_three_classes_are_sams_three_masks(size: int, layers: int) -> None:
    assert_same_answer(SamSegmenter(tiny_sam(size, layers), classes=3, image_size=size), tiny_sam(size, layers), size)


@pytest.mark.parametrize("size", [64, 192])
def test_other_sizes_equal_transformers_with_bilinear_and_linear_tables(size: int) -> None:
    reference = tiny_sam(size)
    resized = tiny_sam().state_dict()
    resized["vision_encoder.pos_embed"] = bilinear(resized["vision_encoder.pos_embed"], size // 16)
    for key in [key for key in resized if "rel_pos" in key and (".1." in key or ".3." in key)]:
        resized[key] = linear(resized[key], 2 * (size // 16) - 1)
    reference.load_state_dict(resized)
    assert_same_answer(SamSegmenter(tiny_sam(), classes=3, image_size=size), reference, size)


def bilinear(table: Tensor, grid: int) -> Tensor:
    """(1, h, w, D) by SAMed's recipe."""
    return F.interpolate(table.permute(0, 3, 1, 2), (grid, grid), mode="bilinear").permute(0, 2, 3, 1)


def linear(table: Tensor, length: int) -> Tensor:
    """(L, D) by SAMed's recipe: an image of one channel whose width stays."""
    return F.interpolate(table[None, None], (length, table.shape[1]), mode="bilinear")[0, 0]


@torch.no_grad()
def test_a_batch_is_segmented_like_its_images_one_by_one() -> None:
    model = SamSegmenter(tiny_sam(), classes=2, image_size=64).eval()
    batch = images(64, batch=3)
    singly = torch.cat([model(image[None]).logits for image in batch])
    torch.testing.assert_close(model(batch).logits, singly, rtol=1e-4, atol=1e-6)


def test_more_classes_than_masks_start_as_copies_and_learn_apart() -> None:
    model = SamSegmenter(tiny_sam(), classes=5, image_size=64)
    logits = model(images(64)).logits
    assert logits.shape == (2, 5, 64, 64)
    torch.testing.assert_close(logits[:, 3], logits[:, 0])
    (logits[:, 0] - logits[:, 3]).mean().backward()
    for parameter in model.decoder.class_heads.parameters():
        parameter.data -= parameter.grad if parameter.grad is not None else 0
    logits = model(images(64)).logits
    assert (logits[:, 3] - logits[:, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("size", [64, 192])
def test_a_saved_sam_loads_and_trains_on_images_of_any_size(tmp_path: Path, size: int) -> None:
    tiny_sam().save_pretrained(tmp_path)
    model = load_sam(tmp_path, classes=2, image_size=size)
    set_adaptation(model, "lora", rank=2)
    answer = model(torch.rand(2, 3, 50, 70))
    assert answer.logits.shape == (2, 2, 50, 70)
    assert tuple(feature.shape[1] for feature in answer.features) == model.feature_dims == (32, 32, 16)
    assert answer.features[-1].shape[-2:] == (size // 16, size // 16)
    answer.logits.square().mean().backward()
    # Distributed training waits for ever for a trained parameter that gets no gradient.
    idle = [name for name, p in model.named_parameters() if p.requires_grad != (p.grad is not None)]
    assert idle == []


def test_sizes_off_the_patch_grid_are_refused() -> None:
    with pytest.raises(UserError, match="multiple of 16"):
        SamSegmenter(tiny_sam(), classes=1, image_size=100)


def test_an_incomplete_checkpoint_is_refused(tmp_path: Path) -> None:
    tiny_sam().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["vision_encoder.pos_embed"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"not a complete SAM: 1 missing \(vision_encoder\.pos_embed\)"):
        load_sam(tmp_path, classes=1, image_size=64)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    tiny_sam().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_sam(tmp_path, classes=1, image_size=64)
