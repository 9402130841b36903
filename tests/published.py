"""Random tensors in exactly the names and shapes in which foundation models are published, at any width and depth.

Written down from the module trees of segment_anything, MobileSAM, sam2, dinov2, dinov3 and torchvision, so that a wrong
translation in the package cannot agree with itself here. The defaults are the published sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def fill(shapes: Shapes, *, seed: int = 0, spread: float = 0.05) -> State:
    """Return normal numbers of the shapes; variances are positive, norm weights near one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        numbers = torch.randn(shape, generator=generator) * spread
        if name.endswith("running_var"):
            numbers = 1 + numbers.abs()
        elif name.endswith("num_batches_tracked"):
            numbers = torch.tensor(0)
        elif name.endswith((".weight", ".gamma")) and len(shape) == 1:
            numbers = 1 + numbers
        state[name] = numbers
    return state


def _linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _conv(name: str, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), **({f"{name}.bias": (outputs,)} if bias else {})}


def _batch_norm(name: str, width: int) -> Shapes:
    return {**_norm(name, width), f"{name}.running_mean": (width,), f"{name}.running_var": (width,),
            f"{name}.num_batches_tracked": ()}  # fmt: skip


# --- Segment Anything ---


def sam_prompt_and_mask_decoder(*, width: int = 256, mlp: int = 2048, mask_channels: int = 16) -> Shapes:
    """Return what SAM, MedSAM and MobileSAM have beside their image encoders."""
    shapes: Shapes = {"prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, width // 2)}
    for index in range(4):
        shapes[f"prompt_encoder.point_embeddings.{index}.weight"] = (1, width)
    shapes["prompt_encoder.not_a_point_embed.weight"] = (1, width)
    small = mask_channels // 4
    shapes |= _conv("prompt_encoder.mask_downscaling.0", 1, small, 2)
    shapes |= _norm("prompt_encoder.mask_downscaling.1", small)
    shapes |= _conv("prompt_encoder.mask_downscaling.3", small, mask_channels, 2)
    shapes |= _norm("prompt_encoder.mask_downscaling.4", mask_channels)
    shapes |= _conv("prompt_encoder.mask_downscaling.6", mask_channels, width, 1)
    shapes["prompt_encoder.no_mask_embed.weight"] = (1, width)

    def attention(name: str, inner: int) -> Shapes:
        projections = [_linear(f"{name}.{part}_proj", width, inner) for part in "qkv"]
        return {**projections[0], **projections[1], **projections[2], **_linear(f"{name}.out_proj", inner, width)}

    for layer in ("mask_decoder.transformer.layers.0", "mask_decoder.transformer.layers.1"):
        shapes |= attention(f"{layer}.self_attn", width) | _norm(f"{layer}.norm1", width)
        shapes |= attention(f"{layer}.cross_attn_token_to_image", width // 2) | _norm(f"{layer}.norm2", width)
        shapes |= _linear(f"{layer}.mlp.lin1", width, mlp) | _linear(f"{layer}.mlp.lin2", mlp, width)
        shapes |= _norm(f"{layer}.norm3", width) | _norm(f"{layer}.norm4", width)
        shapes |= attention(f"{layer}.cross_attn_image_to_token", width // 2)
    shapes |= attention("mask_decoder.transformer.final_attn_token_to_image", width // 2)
    shapes |= _norm("mask_decoder.transformer.norm_final_attn", width)
    shapes |= {"mask_decoder.iou_token.weight": (1, width), "mask_decoder.mask_tokens.weight": (4, width)}
    shapes["mask_decoder.output_upscaling.0.weight"] = (width, width // 4, 2, 2)
    shapes["mask_decoder.output_upscaling.0.bias"] = (width // 4,)
    shapes |= _norm("mask_decoder.output_upscaling.1", width // 4)
    shapes["mask_decoder.output_upscaling.3.weight"] = (width // 4, width // 8, 2, 2)
    shapes["mask_decoder.output_upscaling.3.bias"] = (width // 8,)

    def mlp_of_three(name: str, hidden: int, outputs: int) -> Shapes:
        return {**_linear(f"{name}.layers.0", width, hidden), **_linear(f"{name}.layers.1", hidden, hidden),
                **_linear(f"{name}.layers.2", hidden, outputs)}  # fmt: skip

    for index in range(4):
        shapes |= mlp_of_three(f"mask_decoder.output_hypernetworks_mlps.{index}", width, width // 8)
    return shapes | mlp_of_three("mask_decoder.iou_prediction_head", width, 4)


def _neck(name: str, inputs: int, width: int) -> Shapes:
    return {**_conv(f"{name}.0", inputs, width, 1, bias=False), **_norm(f"{name}.1", width),
            **_conv(f"{name}.2", width, width, 3, bias=False), **_norm(f"{name}.3", width)}  # fmt: skip


def meta_sam(
    *, width: int = 768, depth: int = 12, heads: int = 12, grid: int = 64, window: int = 14,
    everywhere: tuple[int, ...] = (2, 5, 8, 11), neck: int = 256, mlp: int | None = None, decoder_mlp: int = 2048,
) -> Shapes:  # fmt: skip
    """Return sam_vit_b_01ec64.pth; sam_vit_l_0b3195.pth has width 1024, 24 blocks, 16 heads, (5, 11, 17, 23)."""
    inner, encoder = mlp or 4 * width, "image_encoder"
    shapes: Shapes = {
        f"{encoder}.pos_embed": (1, grid, grid, width),
        **_conv(f"{encoder}.patch_embed.proj", 3, width, 16),
    }
    for index in range(depth):
        block, length = f"{encoder}.blocks.{index}", 2 * (grid if index in everywhere else window) - 1
        shapes |= _norm(f"{block}.norm1", width)
        shapes |= {f"{block}.attn.rel_pos_{axis}": (length, width // heads) for axis in "hw"}
        shapes |= _linear(f"{block}.attn.qkv", width, 3 * width) | _linear(f"{block}.attn.proj", width, width)
        shapes |= _norm(f"{block}.norm2", width)
        shapes |= _linear(f"{block}.mlp.lin1", width, inner) | _linear(f"{block}.mlp.lin2", inner, width)
    return shapes | _neck(f"{encoder}.neck", width, neck) | sam_prompt_and_mask_decoder(width=neck, mlp=decoder_mlp)


SMALL_SAM = {"width": 32, "depth": 4, "heads": 2, "grid": 8, "window": 3, "everywhere": (1, 3), "neck": 32,
             "mlp": 64, "decoder_mlp": 64}  # fmt: skip
"""Settings of :func:`meta_sam` for a network of some ten thousand numbers."""


def tiny_vit_5m(prefix: str = "") -> Shapes:
    """Return TinyViT-5M as Microsoft publishes it; MobileSAM's image encoder is the same and a neck."""
    widths, depths, heads, windows = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)

    def conv_bn(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
        return {f"{name}.c.weight": (outputs, inputs, kernel, kernel), **_batch_norm(f"{name}.bn", outputs)}

    shapes = {**conv_bn(f"{prefix}patch_embed.seq.0", 3, 32, 3), **conv_bn(f"{prefix}patch_embed.seq.2", 32, 64, 3)}
    for layer, (width, depth) in enumerate(zip(widths, depths)):
        for index in range(depth):
            block = f"{prefix}layers.{layer}.blocks.{index}"
            if layer == 0:
                shapes |= conv_bn(f"{block}.conv1", width, 4 * width, 1) | conv_bn(f"{block}.conv2", 1, 4 * width, 3)
                shapes |= conv_bn(f"{block}.conv3", 4 * width, width, 1)
                continue
            shapes[f"{block}.attn.attention_biases"] = (heads[layer], windows[layer] ** 2)
            shapes |= _norm(f"{block}.attn.norm", width) | _linear(f"{block}.attn.qkv", width, 3 * width)
            shapes |= _linear(f"{block}.attn.proj", width, width)
            shapes |= _norm(f"{block}.mlp.norm", width) | _linear(f"{block}.mlp.fc1", width, 4 * width)
            shapes |= _linear(f"{block}.mlp.fc2", 4 * width, width) | conv_bn(f"{block}.local_conv", 1, width, 3)
        if layer < 3:
            merge, wider = f"{prefix}layers.{layer}.downsample", widths[layer + 1]
            shapes |= conv_bn(f"{merge}.conv1", width, wider, 1) | conv_bn(f"{merge}.conv2", 1, wider, 3)
            shapes |= conv_bn(f"{merge}.conv3", wider, wider, 1)
    return shapes | _norm(f"{prefix}norm_head", 320) | _linear(f"{prefix}head", 320, 1000)


def mobile_sam() -> Shapes:
    """Return mobile_sam.pt: TinyViT-5M with a classification head that nothing uses, a neck, SAM's own decoder."""
    encoder = tiny_vit_5m("image_encoder.") | _neck("image_encoder.neck", 320, 256)
    return encoder | sam_prompt_and_mask_decoder()


def sam2(
    *,
    width: int = 96,
    stages: tuple[int, ...] = (1, 2, 7, 2),
    grid: int = 7,
    window: int = 8,
    prefix: str = "image_encoder.trunk.",
) -> Shapes:
    """Return what sam2_hiera_tiny.pt holds of the image encoder, and a little of the rest; lies under ``model``."""
    shapes: Shapes = {
        f"{prefix}pos_embed": (1, width, grid, grid),
        f"{prefix}pos_embed_window": (1, width, window, window),
    }
    shapes |= _conv(f"{prefix}patch_embed.proj", 3, width, 7)
    inputs, index = width, 0
    for stage, depth in enumerate(stages):
        for place in range(depth):
            block, outputs = f"{prefix}blocks.{index}", width * 2**stage
            shapes |= _norm(f"{block}.norm1", inputs) | _linear(f"{block}.attn.qkv", inputs, 3 * outputs)
            shapes |= _linear(f"{block}.attn.proj", outputs, outputs) | _norm(f"{block}.norm2", outputs)
            shapes |= _linear(f"{block}.mlp.layers.0", outputs, 4 * outputs)
            shapes |= _linear(f"{block}.mlp.layers.1", 4 * outputs, outputs)
            if place == 0 and stage:
                shapes |= _linear(f"{block}.proj", inputs, outputs)
            inputs, index = outputs, index + 1
    for level, channels in enumerate((8, 4, 2, 1)):
        shapes |= _conv(f"image_encoder.neck.convs.{level}.conv", channels * width, 256, 1)
    return shapes | {
        "maskmem_tpos_enc": (7, 1, 1, 64),
        "no_mem_embed": (1, 1, 256),
        "sam_mask_decoder.iou_token.weight": (1, 256),
    }


# --- self-supervised and supervised encoders ---


def _vit_block(block: str, width: int) -> Shapes:
    return {**_norm(f"{block}.norm1", width), **_linear(f"{block}.attn.qkv", width, 3 * width),
            **_linear(f"{block}.attn.proj", width, width), **_norm(f"{block}.norm2", width)}  # fmt: skip


def _mlp(block: str, width: int) -> Shapes:
    return {**_linear(f"{block}.mlp.fc1", width, 4 * width), **_linear(f"{block}.mlp.fc2", 4 * width, width)}


def dinov2(*, width: int = 384, depth: int = 12, registers: int = 0) -> Shapes:
    """Return dinov2_vits14_pretrain.pth, or (4 registers) dinov2_vits14_reg4_pretrain.pth."""
    shapes: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1370, width)}
    if registers:
        shapes["register_tokens"] = (1, registers, width)
    shapes |= {"mask_token": (1, width), **_conv("patch_embed.proj", 3, width, 14)}
    for block in (f"blocks.{index}" for index in range(depth)):
        shapes |= _vit_block(block, width) | _mlp(block, width)
        shapes |= {f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)}
    return shapes | _norm("norm", width)


def dinov3(*, width: int = 384, depth: int = 12, heads: int = 6) -> Shapes:
    """Return dinov3_vits16_pretrain_lvd1689m-08c60483.pth."""
    shapes: Shapes = {"cls_token": (1, 1, width), "storage_tokens": (1, 4, width), "mask_token": (1, width)}
    shapes |= {**_conv("patch_embed.proj", 3, width, 16), "rope_embed.periods": (width // heads // 4,)}
    for block in (f"blocks.{index}" for index in range(depth)):
        shapes |= _vit_block(block, width) | _mlp(block, width) | {f"{block}.attn.qkv.bias_mask": (3 * width,)}
        shapes |= {f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)}
    return shapes | _norm("norm", width)


def deit(*, width: int = 192, depth: int = 12) -> Shapes:
    """Return what lies under ``model`` in deit_tiny_patch16_224-a1311bcf.pth; timm's augreg has the same names."""
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 197, width),
        **_conv("patch_embed.proj", 3, width, 16),
    }
    for block in (f"blocks.{index}" for index in range(depth)):
        shapes |= _vit_block(block, width) | _mlp(block, width)
    return shapes | _norm("norm", width) | _linear("head", width, 1000)


def augreg(*, width: int = 192, depth: int = 12, heads: int = 3, classes: int = 1000) -> Shapes:
    """Return Ti_16-…npz of how-to-train-your-vit, as JAX names and lays out its arrays."""
    shapes: Shapes = {"cls": (1, 1, width), "embedding/kernel": (16, 16, 3, width), "embedding/bias": (width,),
                      "Transformer/posembed_input/pos_embedding": (1, 197, width)}  # fmt: skip
    for index in range(depth):
        block, attention = f"Transformer/encoderblock_{index}", "MultiHeadDotProductAttention_1"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}/{norm}/scale": (width,), f"{block}/{norm}/bias": (width,)}
        for part in ("query", "key", "value"):
            shapes |= {f"{block}/{attention}/{part}/kernel": (width, heads, width // heads)}
            shapes |= {f"{block}/{attention}/{part}/bias": (heads, width // heads)}
        shapes |= {
            f"{block}/{attention}/out/kernel": (heads, width // heads, width),
            f"{block}/{attention}/out/bias": (width,),
        }
        for layer, (inputs, outputs) in enumerate(((width, 4 * width), (4 * width, width))):
            dense = f"{block}/MlpBlock_3/Dense_{layer}"
            shapes |= {f"{dense}/kernel": (inputs, outputs), f"{dense}/bias": (outputs,)}
    shapes |= {"Transformer/encoder_norm/scale": (width,), "Transformer/encoder_norm/bias": (width,)}
    return shapes | {"head/kernel": (width, classes), "head/bias": (classes,)}


def radimagenet_resnet50() -> Shapes:
    """Return RadImageNet's ResNet50.pt: a ``Sequential`` of torchvision's children under ``backbone``."""
    shapes = {**_conv("backbone.0", 3, 64, 7, bias=False), **_batch_norm("backbone.1", 64)}
    inputs = 64
    for stage, depth in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for index in range(depth):
            block = f"backbone.{4 + stage}.{index}"
            shapes |= _conv(f"{block}.conv1", inputs, inner, 1, bias=False) | _batch_norm(f"{block}.bn1", inner)
            shapes |= _conv(f"{block}.conv2", inner, inner, 3, bias=False) | _batch_norm(f"{block}.bn2", inner)
            shapes |= _conv(f"{block}.conv3", inner, 4 * inner, 1, bias=False) | _batch_norm(f"{block}.bn3", 4 * inner)
            if index == 0:
                shapes |= _conv(f"{block}.downsample.0", inputs, 4 * inner, 1, bias=False)
                shapes |= _batch_norm(f"{block}.downsample.1", 4 * inner)
            inputs = 4 * inner
    return shapes
