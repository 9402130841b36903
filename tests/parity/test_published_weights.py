"""Networks filled from published names against the reference implementations that read those names themselves."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from timm.models.vision_transformer_sam import VisionTransformerSAM
from timm.models.vision_transformer_sam import checkpoint_filter_fn as timm_reads_sam
from torch import Tensor, nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Sam2Config,
    Sam2Model,
    SamModel,
)

from tests import published
from tskd.models.pixels import PIXELS
from tskd.models.registry import build_model
from tskd.models.sam import load_sam
from tskd.models.sam_files import read_sam
from tskd.recipe.schema import TeacherConfig
from tskd.stages.teacher import choose_teacher

State = Mapping[str, Tensor]


def images(size: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def normalised(images: Tensor, name: str = "imagenet") -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in PIXELS[name])
    return (images - mean) / std


def features_of(file: Path, size: int, *, batch: int = 2, **settings: object) -> tuple[Tensor, ...]:
    """The features of the teacher that ``teacher.weights=FILE`` alone gives."""
    config = TeacherConfig(weights=str(file), image_size=None, **settings)  # type: ignore[arg-type]
    source = choose_teacher(config, ("lesion",), size, download=False)
    assert source.description.image_size == size
    with torch.no_grad():
        return build_model(source.description).eval().encode(images(size, batch))  # type: ignore[operator]


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, reference in zip(ours, theirs, strict=True):
        assert reference.std() > 1e-3
        assert (mine - reference).abs().max() < 1e-5 * reference.abs().max()


# --- Segment Anything: the image encoder by timm, the mask decoder written down from segment_anything's forward ---


def attention(state: State, name: str, q: Tensor, k: Tensor, v: Tensor, heads: int = 8) -> Tensor:
    parts = [F.linear(x, state[f"{name}.{part}_proj.weight"], state[f"{name}.{part}_proj.bias"])
             for part, x in zip("qkv", (q, k, v))]  # fmt: skip
    queries, keys, values = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    mixed = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
    return F.linear(mixed, state[f"{name}.out_proj.weight"], state[f"{name}.out_proj.bias"])


def norm(state: State, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def perceptron(state: State, name: str, x: Tensor) -> Tensor:
    for layer in range(3):
        x = F.linear(x, state[f"{name}.layers.{layer}.weight"], state[f"{name}.layers.{layer}.bias"])
        x = F.relu(x) if layer < 2 else x
    return x


def meta_masks(state: State, embedding: Tensor) -> Tensor:
    """SAM's three masks without a prompt, (B, 3, 4h, 4w)."""
    batch, _, height, width = embedding.shape
    rows, columns = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    waves = (2 * torch.stack((columns, rows), -1) - 1) @ state[
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    ]
    where = torch.cat(((2 * torch.pi * waves).sin(), (2 * torch.pi * waves).cos()), -1).flatten(0, 1)
    names = ("iou_token", "mask_tokens")
    asked = torch.cat([state[f"mask_decoder.{name}.weight"] for name in names]).expand(batch, -1, -1)
    queries, keys = asked, (embedding + state["prompt_encoder.no_mask_embed.weight"][..., None, None]).flatten(2).mT
    for layer in (f"mask_decoder.transformer.layers.{index}" for index in range(2)):
        if layer.endswith("0"):
            queries = attention(state, f"{layer}.self_attn", queries, queries, queries)
        else:
            queries = queries + attention(state, f"{layer}.self_attn", queries + asked, queries + asked, queries)
        queries = norm(state, f"{layer}.norm1", queries)
        heard = attention(state, f"{layer}.cross_attn_token_to_image", queries + asked, keys + where, keys)
        queries = norm(state, f"{layer}.norm2", queries + heard)
        hidden = F.relu(F.linear(queries, state[f"{layer}.mlp.lin1.weight"], state[f"{layer}.mlp.lin1.bias"]))
        told = F.linear(hidden, state[f"{layer}.mlp.lin2.weight"], state[f"{layer}.mlp.lin2.bias"])
        queries = norm(state, f"{layer}.norm3", queries + told)
        heard = attention(state, f"{layer}.cross_attn_image_to_token", keys + where, queries + asked, queries)
        keys = norm(state, f"{layer}.norm4", keys + heard)
    final = "mask_decoder.transformer.final_attn_token_to_image"
    queries = queries + attention(state, final, queries + asked, keys + where, keys)
    queries = norm(state, "mask_decoder.transformer.norm_final_attn", queries)
    planes = keys.mT.unflatten(2, (height, width))
    up = "mask_decoder.output_upscaling"
    planes = F.conv_transpose2d(planes, state[f"{up}.0.weight"], state[f"{up}.0.bias"], stride=2)
    planes = F.gelu(norm(state, f"{up}.1", planes.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    planes = F.gelu(F.conv_transpose2d(planes, state[f"{up}.3.weight"], state[f"{up}.3.bias"], stride=2))
    heads = (f"mask_decoder.output_hypernetworks_mlps.{index}" for index in (1, 2, 3))
    kernels = [perceptron(state, head, queries[:, 2 + index]) for index, head in enumerate(heads)]
    return torch.einsum("bkc,bchw->bkhw", torch.stack(kernels, 1), planes)


@torch.no_grad()
@pytest.mark.parametrize(("name", "pixels"), [("sam_vit_b_01ec64.pth", "imagenet"), ("medsam_vit_b.pth", "minmax")])
def test_metas_sam_file_answers_as_segment_anything(tmp_path: Path, name: str, pixels: str) -> None:
    state = published.fill(published.meta_sam(**published.SMALL_SAM), spread=0.3)
    torch.save(state, tmp_path / name)
    source = choose_teacher(
        TeacherConfig(weights=str(tmp_path / name), image_size=128), ("a", "b", "c"), 64, download=False
    )
    ours = build_model(source.description).eval()(images(128))
    encoder = VisionTransformerSAM(
        img_size=128, embed_dim=32, depth=4, num_heads=2, mlp_ratio=2, num_classes=0, window_size=3, init_values=None,
        global_attn_indexes=(1, 3), neck_chans=32, use_rel_pos=True, pre_norm=False,
    ).eval()  # fmt: skip
    encoder.load_state_dict(timm_reads_sam(dict(state), encoder))
    seen = images(128)
    if pixels == "minmax":
        low, high = (edge(seen.flatten(1), 1).view(-1, 1, 1, 1) for edge in (torch.amin, torch.amax))
        seen = (seen - low) / (high - low)
    embedding = encoder.forward_features(normalised(seen) if pixels == "imagenet" else seen)
    assert_close((ours.features[-1],), (embedding,))
    masks = F.interpolate(meta_masks(state, embedding), size=(128, 128), mode="bilinear")
    assert_close((ours.logits,), (masks,))


def test_a_transformers_folder_answers_alike_with_either_file_and_with_metas(tmp_path: Path) -> None:
    state = published.fill(published.meta_sam(**published.SMALL_SAM), spread=0.3)
    torch.save(state, tmp_path / "sam.pth")
    config, named = read_sam(tmp_path / "sam.pth")
    sam = SamModel(config)
    sam.load_state_dict(named)
    sam.save_pretrained(tmp_path / "hf")
    torch.save(sam.state_dict(), tmp_path / "pytorch_model.bin")
    answers = []
    for place in ("sam.pth", "hf", "hf/model.safetensors", "pytorch_model.bin"):
        model = load_sam(tmp_path / place, classes=2, image_size=64).eval()
        with torch.no_grad():
            answers.append(model(images(64)).logits)
    assert all(torch.equal(answer, answers[0]) for answer in answers)


# --- MobileSAM: TinyViT's forward written down from its names ---


def conv_bn(state: State, name: str, x: Tensor, *, stride: int = 1, groups: int = 1) -> Tensor:
    kernel = state[f"{name}.c.weight"]
    x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
    kinds = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(state[f"{name}.bn.{kind}"] for kind in kinds))


def tiny_block(state: State, name: str, x: Tensor, window: int, heads: int) -> Tensor:
    batch, channels, height, width = x.shape
    pad = [-side % window for side in (height, width)]
    rows = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, pad[1], 0, pad[0]))
    across, down = rows.shape[2] // window, rows.shape[1] // window
    tokens = rows.view(batch, down, window, across, window, channels).transpose(2, 3).reshape(-1, window**2, channels)
    qkv = F.linear(
        norm(state, f"{name}.attn.norm", tokens, 1e-5), state[f"{name}.attn.qkv.weight"], state[f"{name}.attn.qkv.bias"]
    )
    queries, keys, values = qkv.view(*tokens.shape[:2], heads, -1).transpose(1, 2).chunk(3, -1)
    places = list(itertools.product(range(window), repeat=2))
    offsets = [(abs(a[0] - b[0]), abs(a[1] - b[1])) for a in places for b in places]
    order = {offset: index for index, offset in enumerate(dict.fromkeys(offsets))}
    bias = state[f"{name}.attn.attention_biases"][:, [order[offset] for offset in offsets]]
    bias = bias.view(heads, window**2, window**2)
    mixed = ((queries @ keys.mT) * (channels // heads) ** -0.5 + bias).softmax(-1) @ values
    mixed = F.linear(
        mixed.transpose(1, 2).flatten(2), state[f"{name}.attn.proj.weight"], state[f"{name}.attn.proj.bias"]
    )
    rows = mixed.view(batch, down, across, window, window, channels).transpose(2, 3).reshape(rows.shape)
    x = x + rows[:, :height, :width].permute(0, 3, 1, 2)
    x = conv_bn(state, f"{name}.local_conv", x, groups=channels)
    hidden = norm(state, f"{name}.mlp.norm", x.permute(0, 2, 3, 1), 1e-5)
    hidden = F.gelu(F.linear(hidden, state[f"{name}.mlp.fc1.weight"], state[f"{name}.mlp.fc1.bias"]))
    hidden = F.linear(hidden, state[f"{name}.mlp.fc2.weight"], state[f"{name}.mlp.fc2.bias"])
    return x + hidden.permute(0, 3, 1, 2)


def mobile_sam_stages(state: State, x: Tensor) -> list[Tensor]:
    """The outputs of TinyViT's four stages, at strides 4, 8, 16 and 16."""
    x = F.gelu(conv_bn(state, "image_encoder.patch_embed.seq.0", x, stride=2))
    x = conv_bn(state, "image_encoder.patch_embed.seq.2", x, stride=2)
    stages = []
    for layer, (depth, window, heads) in enumerate(((2, 0, 0), (2, 7, 4), (6, 14, 5), (2, 7, 10))):
        for name in (f"image_encoder.layers.{layer}.blocks.{index}" for index in range(depth)):
            if layer:
                x = tiny_block(state, name, x, window, heads)
                continue
            inner = F.gelu(conv_bn(state, f"{name}.conv1", x))
            inner = F.gelu(conv_bn(state, f"{name}.conv2", inner, groups=inner.shape[1]))
            x = F.gelu(x + conv_bn(state, f"{name}.conv3", inner))
        stages.append(x)
        if layer < 3:
            merge = f"image_encoder.layers.{layer}.downsample"
            x = F.gelu(conv_bn(state, f"{merge}.conv1", x))
            x = F.gelu(conv_bn(state, f"{merge}.conv2", x, stride=1 if layer == 2 else 2, groups=x.shape[1]))
            x = conv_bn(state, f"{merge}.conv3", x)
    return stages


@torch.no_grad()
def test_mobile_sam_keeps_the_grid_of_its_last_stage(tmp_path: Path) -> None:
    state = published.fill(published.mobile_sam())
    torch.save(state, tmp_path / "mobile_sam.pt")
    expected = mobile_sam_stages(state, normalised(images(96)))
    assert [96 // stage.shape[-1] for stage in expected] == [4, 8, 16, 16]
    assert_close(features_of(tmp_path / "mobile_sam.pt", 96), expected)


# --- SAM 2, DINOv2, DINOv3 by transformers; ResNet by torchvision; JAX archives by timm ---


def renamed(state: State, *renames: tuple[str, str]) -> dict[str, Tensor]:
    named = {}
    for name, tensor in state.items():
        for old, new in renames:
            name = name.replace(old, new)
        named[name] = tensor
    return named


def test_sam2_is_read_from_metas_file_and_from_transformers_folder(tmp_path: Path) -> None:
    state = published.fill(published.sam2())
    torch.save({"model": state}, tmp_path / "sam2_hiera_tiny.pt")
    sam2 = Sam2Model(Sam2Config()).eval()
    trunk = {name.removeprefix("image_encoder.trunk."): tensor for name, tensor in state.items() if ".trunk." in name}
    hiera = renamed(trunk, ("patch_embed.proj.", "patch_embed.projection."), (".norm", ".layer_norm"),
                    ("mlp.layers.0", "mlp.proj_in"), ("mlp.layers.1", "mlp.proj_out"))  # fmt: skip
    sam2.vision_encoder.backbone.load_state_dict(hiera)
    sam2.save_pretrained(tmp_path / "hf")
    with torch.no_grad():
        answer = sam2.vision_encoder.backbone(normalised(images(128)))
    expected = [stage.permute(0, 3, 1, 2) for stage in answer.intermediate_hidden_states]
    for place in ("sam2_hiera_tiny.pt", "hf"):
        assert_close(features_of(tmp_path / place, 128), expected)


_VIT_TO_TRANSFORMERS = (
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
)


def split_qkv(state: State) -> dict[str, Tensor]:
    """Fused projections as transformers has them."""
    split = {}
    for name, tensor in state.items():
        if ".attn.qkv." not in name:
            split[name] = tensor
            continue
        for part, piece in zip("qkv", tensor.chunk(3), strict=True):
            split[name.replace("attn.qkv", f"attention.{part}_proj")] = piece
    return split


@pytest.mark.parametrize("registers", [0, 4])
def test_official_dinov2_answers_as_transformers(tmp_path: Path, registers: int) -> None:
    state = published.fill(published.dinov2(registers=registers))
    torch.save(state, tmp_path / "dino.pth")
    named = split_qkv(state)
    named = renamed(named, *_VIT_TO_TRANSFORMERS, ("attn.proj", "attention.o_proj"), ("blocks.", "encoder.layer."))
    outside = {
        "norm.weight": "layernorm.weight", "norm.bias": "layernorm.bias", "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token", "pos_embed": "embeddings.position_embeddings",
        "register_tokens": "embeddings.register_tokens",
    }  # fmt: skip
    named = {outside.get(name, name): tensor for name, tensor in named.items()}
    if not registers:
        named["embeddings.register_tokens"] = torch.zeros(1, 0, 384)
    config = Dinov2WithRegistersConfig(
        hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14, num_register_tokens=registers
    )
    model = Dinov2WithRegistersModel(config).eval()
    model.load_state_dict(named)
    with torch.no_grad():
        hidden = model(normalised(images(518, batch=1)), output_hidden_states=True).hidden_states
        hidden = [model.layernorm(tokens) for tokens in hidden]
    expected = [hidden[index][:, 1 + registers :].mT.unflatten(2, (37, 37)) for index in (3, 6, 9, 12)]
    assert_close(features_of(tmp_path / "dino.pth", 518, batch=1), expected)


def test_official_dinov3_answers_as_transformers(tmp_path: Path) -> None:
    state = published.fill(published.dinov3())
    for name in [name for name in state if name.endswith("bias_mask")]:
        state[name] = torch.cat((torch.ones(384), torch.zeros(384), torch.ones(384)))  # keys have no bias
    torch.save(state, tmp_path / "dinov3_vits16.pth")
    model = DINOv3ViTModel(
        DINOv3ViTConfig(hidden_size=384, intermediate_size=1536, num_attention_heads=6, num_register_tokens=4)
    )
    named = split_qkv(state)
    renames = (("attn.proj", "attention.o_proj"), ("mlp.fc1", "mlp.up_proj"), ("mlp.fc2", "mlp.down_proj"))
    named = renamed(named, ("patch_embed.proj.", "embeddings.patch_embeddings."), *_VIT_TO_TRANSFORMERS[1:], *renames)
    own = model.state_dict()
    layers = "model.layer." if any(name.startswith("model.layer.") for name in own) else "layer."
    named = {name.replace("blocks.", layers): tensor for name, tensor in named.items()}
    named |= {"embeddings.cls_token": state["cls_token"], "embeddings.mask_token": state["mask_token"][None],
              "embeddings.register_tokens": state["storage_tokens"]}  # fmt: skip
    model.load_state_dict({name: named[name] for name in own})
    with torch.no_grad():
        hidden = model.eval()(normalised(images(64)), output_hidden_states=True).hidden_states
        hidden = [model.norm(tokens) for tokens in hidden]
    expected = [hidden[index][:, 5:].mT.unflatten(2, (4, 4)) for index in (3, 6, 9, 12)]
    assert_close(features_of(tmp_path / "dinov3_vits16.pth", 64), expected)


def test_radimagenets_numbered_resnet_answers_as_torchvision(tmp_path: Path) -> None:
    state = published.fill(published.radimagenet_resnet50())
    torch.save(state, tmp_path / "ResNet50.pt")
    backbone = nn.Sequential(*list(torchvision.models.resnet50().children())[:9]).eval()
    backbone.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in state.items()})
    planes, expected = normalised(images(64), "half"), []
    with torch.no_grad():
        for index, part in enumerate(backbone):
            planes = part(planes)
            if index in (2, 4, 5, 6, 7):
                expected.append(planes)
    assert_close(features_of(tmp_path / "ResNet50.pt", 64), expected)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [("augreg.npz", "half"), ("deit_tiny_patch16_224-a1311bcf.pth", "imagenet"),
     ("vit_tiny_patch16_224.augreg_in21k_ft_in1k/model.safetensors", "half")],
)  # fmt: skip
def test_the_three_vits_of_one_shape_see_their_own_pixels(tmp_path: Path, name: str, pixels: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    reference = timm.create_model("vit_tiny_patch16_224", num_classes=1000).eval()
    if file.suffix == ".npz":
        np.savez(file, **{key: value.numpy() for key, value in published.fill(published.augreg()).items()})
        reference.load_pretrained(str(file))
    else:
        state = published.fill(published.deit())
        torch.save({"model": state}, file) if file.suffix == ".pth" else save_file(state, file)
        reference.load_state_dict(state)
    with torch.no_grad():
        expected = reference.forward_intermediates(
            normalised(images(224), pixels), indices=[2, 5, 8, 11], intermediates_only=True, norm=True
        )
    assert_close(features_of(file, 224), expected)
