"""The Segment Anything Model (Kirillov et al., arXiv 2304.02643) without prompts, for K classes, at any size.

The networks are transformers' own; written here are what SAM lacks for a teacher: position tables at other sizes than
1024 px, class tokens in the mask decoder, and features beside the logits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import SamModel
from transformers.models.sam.modeling_sam import SamMaskDecoder, SamVisionEncoder
from transformers.utils import logging

from tskd.errors import UserError
from tskd.models.pixels import Normalise
from tskd.models.sam_files import check_sam, read_sam
from tskd.models.weights import resolve_sam, weight_file
from tskd.types import SegmentationOutput

PIXELS = "imagenet"
"""SAM's own preprocessing; MedSAM's is another with the same tensors."""


class PromptFreeDecoder(nn.Module):
    """SAM's mask decoder asked for K classes instead of for a prompt.

    SAM has three mask tokens for whole, part and subpart, each with a small network that turns the decoded token into
    the weights of a 1x1 convolution over the upscaled embedding. Class i starts as a copy of the pair ``1 + i mod 3``,
    so that it begins with a working mask head; the labels tell equal copies apart. The token of SAM's single-mask mode
    and the quality (IoU) token stay as context in the attention, the quality head is gone. The prompt is the learned
    "no mask" embedding; with three classes the answer is thus that of SAM itself before training.
    """

    def __init__(self, sam: SamModel, *, classes: int) -> None:
        super().__init__()
        pretrained: SamMaskDecoder = sam.mask_decoder
        sources = [1 + index % pretrained.num_multimask_outputs for index in range(classes)]
        tokens = pretrained.mask_tokens.weight.detach()
        self.no_mask = nn.Parameter(sam.prompt_encoder.no_mask_embed.weight.detach().clone())
        self.context_tokens = nn.Parameter(torch.cat((pretrained.iou_token.weight.detach(), tokens[:1])))
        self.class_tokens = nn.Parameter(tokens[sources])
        self.transformer = pretrained.transformer
        self.upscale = nn.Sequential(
            pretrained.upscale_conv1,
            pretrained.upscale_layer_norm,
            nn.GELU(),
            pretrained.upscale_conv2,
            nn.GELU(),
        )
        heads = pretrained.output_hypernetworks_mlps
        self.class_heads = nn.ModuleList(copy.deepcopy(heads[source]) for source in sources)

    def forward(self, embedding: Tensor, positions: Tensor) -> Tensor:
        """Return logits (B, K, 4h, 4w) for the embedding (B, C, h, w) and the position encoding (1, C, h, w)."""
        batch, channels, height, width = embedding.shape
        tokens = torch.cat((self.context_tokens, self.class_tokens)).expand(batch, 1, -1, -1)
        decoded, pixels = self.transformer(
            point_embeddings=tokens,
            image_embeddings=embedding + self.no_mask[..., None, None],
            image_positional_embeddings=positions.expand(batch, -1, -1, -1),
            attention_similarity=None,
        )
        upscaled = self.upscale(pixels.transpose(2, 3).reshape(batch, channels, height, width))
        classes = decoded[:, 0, len(self.context_tokens) :].unbind(1)
        kernels = torch.stack([head(token) for head, token in zip(self.class_heads, classes, strict=True)], dim=1)
        return torch.einsum("bkc,bchw->bkhw", kernels, upscaled)


class SamSegmenter(nn.Module):
    """SAM as a :class:`tskd.types.Segmenter`: its image encoder and a prompt-free decoder for K classes.

    ``features``: the outputs of the global-attention blocks (2, 5, 8, 11 in ViT-B), each (B, D, h, w), then the neck's
    embedding (B, 256, h, w), where h = w = image_size / 16. The decoder's logits at a quarter of ``image_size`` are
    upsampled bilinearly to the input's size.
    """

    positions: Tensor

    def __init__(self, sam: SamModel, *, classes: int, image_size: int, pixels: str = PIXELS) -> None:
        """Take over the parts of ``sam``; its encoder is resized in place to ``image_size`` pixels a side.

        ``pixels``: a name of :data:`tskd.models.pixels.PIXELS`.
        Raises UserError where ``image_size`` is not a multiple of the patch size.
        """
        super().__init__()
        self.image_size = image_size
        self.checkpointing = False
        self.encoder = resize_encoder(sam.vision_encoder, image_size=image_size)
        self.decoder = PromptFreeDecoder(sam, classes=classes)
        config = self.encoder.config
        self.taps = frozenset(config.global_attn_indexes)
        self.feature_dims = (config.hidden_size,) * len(self.taps) + (config.output_channels,)
        self.register_buffer("positions", _encode_positions(sam, image_size // config.patch_size), persistent=False)
        self.pixels = Normalise.of(pixels)

    def forward(self, images: Tensor) -> SegmentationOutput:
        """Segment (B, 3, H, W) RGB in [0, 1] of any H and W."""
        features = self.encode(images)
        logits = self.decoder(features[-1], self.positions)
        logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear")
        return SegmentationOutput(features, logits)

    def checkpoint_gradients(self) -> None:
        """Keep only what enters a block for the backward pass, and compute the rest again there."""
        self.checkpointing = True

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the features alone."""
        pixels = F.interpolate(images, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
        # The encoder's own forward would give the blocks' outputs only through hooks.
        tokens = self.encoder.patch_embed(self.pixels(pixels))
        if self.encoder.pos_embed is not None:
            tokens = tokens + self.encoder.pos_embed
        features = []
        for index, block in enumerate(self.encoder.layers):
            tokens = checkpoint(block, tokens, use_reentrant=False) if self.checkpointing else block(tokens)
            if index in self.taps:
                features.append(tokens.permute(0, 3, 1, 2))
        return (*features, self.encoder.neck(tokens))


def load_sam(source: str | Path, *, classes: int, image_size: int, pixels: str = PIXELS) -> SamSegmenter:
    """Build a segmenter from a SAM checkpoint: a hub id, a folder of transformers, or a file (Meta's or transformers').

    A hub id is looked up on this machine. Raises UserError where the checkpoint is absent, damaged or incomplete.
    """
    file = weight_file(resolve_sam(source, download=False))
    config, state = read_sam(file)
    check_sam(file)  # transformers fills what is missing with random numbers and only logs it
    with _without_progress_bar():
        sam = SamModel.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    return SamSegmenter(sam, classes=classes, image_size=image_size, pixels=pixels)


def resize_encoder(encoder: SamVisionEncoder, *, image_size: int) -> SamVisionEncoder:
    """Adapt SAM's image encoder in place to square images of ``image_size`` pixels and return it.

    The absolute position table is interpolated bilinearly as in SAMed. The relative tables need no work here: SAM's
    attention interpolates them linearly to its grid in every forward, and windows keep their size. At the native size
    nothing changes. Raises UserError where ``image_size`` is not a multiple of the patch size.
    """
    patch = encoder.config.patch_size
    if image_size < patch or image_size % patch:
        raise UserError(f"SAM cannot work at {image_size} px: the size is a multiple of {patch}, usually 256 to 1024.")
    if encoder.pos_embed is not None and image_size != encoder.config.image_size:
        table = encoder.pos_embed.detach().permute(0, 3, 1, 2)
        resized = F.interpolate(table, size=(image_size // patch, image_size // patch), mode="bilinear")
        encoder.pos_embed = nn.Parameter(resized.permute(0, 2, 3, 1).contiguous())
    encoder.config.image_size = encoder.image_size = image_size
    encoder.patch_embed.image_size = (image_size, image_size)
    return encoder


def _encode_positions(sam: SamModel, grid: int) -> Tensor:
    """Return SAM's random-Fourier encoding of a grid's cells (1, C, grid, grid), which is never trained."""
    sam.config.prompt_encoder_config.image_embedding_size = grid
    return cast(Tensor, sam.get_image_wide_positional_embeddings()).detach().clone()


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
