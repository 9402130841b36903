"""Masked autoencoder (He et al. 2022, arXiv 2111.06377) around a student's own encoder."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from timm.layers import PatchEmbed, build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from tskd.errors import UserError

HEAD_WIDTH = 32
"""Channels a head of the decoder's attention, as in the published decoder (512 channels, 16 heads)."""


class MaskedOutput(NamedTuple):
    """What the decoder says of every patch, and what there is."""

    predicted: Tensor
    """(B, N, P), the P = 3 x patch x patch values of each patch, normalised within it."""
    patches: Tensor
    """(B, N, P) of the image as the encoder sees it."""
    hidden: Tensor
    """(B, N) bool."""


class MaskedAutoencoder(nn.Module):
    """The student's encoder sees the patches that are not hidden; a light decoder, thrown away later, draws the rest.

    The encoder's blocks run as they are in the student, so what is trained is exactly its encoder. Raises UserError
    where the student's backbone is not a plain vision transformer.
    """

    positions: Tensor

    def __init__(self, student: Any, *, mask: float, width: int, depth: int) -> None:
        super().__init__()
        self.student, self.mask = student, mask
        student.decoder.requires_grad_(False)
        vit = require_transformer(student)
        self.patch = int(vit.patch_embed.patch_size[0])
        self.embed = nn.Sequential(nn.LayerNorm(vit.embed_dim), nn.Linear(vit.embed_dim, width))
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        grid = build_sincos2d_pos_embed(list(vit.patch_embed.grid_size), dim=width)
        prefix = torch.zeros(vit.num_prefix_tokens, width)
        self.register_buffer("positions", torch.cat([prefix, grid])[None], persistent=False)
        self.blocks = nn.Sequential(*(Block(width, _heads(width), qkv_bias=True) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * self.patch**2))
        for part in (self.embed, self.blocks, self.head):
            part.apply(_initialise)

    @property
    def tokens(self) -> int:
        """Patches an image is cut into."""
        return int(self.student.encoder.model.patch_embed.num_patches)

    def forward(self, images: Tensor, noise: Tensor) -> MaskedOutput:
        """(B, 3, H, W) in [0, 1] and (B, N) random numbers: the patches with the largest ones are hidden."""
        planes = self.student.normalise(images)
        order = noise.argsort(dim=1)
        seen = visible_count(self.tokens, self.mask)
        encoded = encode_visible(self.student.encoder.model, planes, order[:, :seen])
        hidden = torch.ones_like(noise, dtype=torch.bool).scatter(1, order[:, :seen], value=False)
        return MaskedOutput(self._decode(encoded, order), patchify(planes, self.patch), hidden)

    @torch.no_grad()
    def complete(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is visible of the images, the rest black, and the images with the rest drawn; (B, 3, S, S) each.

        The decoder knows each hidden patch but for its mean and contrast, which are taken from the image.
        """
        predicted, patches, hidden = self(images, noise)
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        drawn = torch.where(hidden[..., None], predicted * variance.sqrt() + mean, patches)
        pictures = [self.student.pixels.undo(unpatchify(values, self.patch)).clamp(0, 1) for values in (patches, drawn)]
        dark = unpatchify(hidden[..., None].expand_as(patches), self.patch)
        return pictures[0].masked_fill(dark, 0), pictures[1]

    def _decode(self, encoded: Tensor, order: Tensor) -> Tensor:
        """Return (B, N, P): visible tokens back in their places, mask tokens in the others."""
        tokens = self.embed(encoded)
        prefix = self.positions.shape[1] - self.tokens
        blanks = self.mask_token.expand(len(tokens), self.positions.shape[1] - tokens.shape[1], -1).to(tokens.dtype)
        shuffled = torch.cat([tokens[:, prefix:], blanks], dim=1)
        patches = shuffled.gather(1, _repeated(order.argsort(dim=1), shuffled.shape[-1]))
        decoded = self.blocks(torch.cat([tokens[:, :prefix], patches], dim=1) + self.positions)
        return self.head(decoded[:, prefix:])


def _heads(width: int) -> int:
    """Return how many heads a decoder of this width has: as many of about ``HEAD_WIDTH`` channels as divide it."""
    return next(heads for heads in range(max(width // HEAD_WIDTH, 1), 0, -1) if width % heads == 0)


def require_transformer(student: Any) -> VisionTransformer:
    """Return the student's vision transformer; UserError where its encoder is something else."""
    vit = getattr(student.encoder, "model", None)
    if not isinstance(vit, VisionTransformer) or not isinstance(vit.patch_embed, PatchEmbed):  # hybrids have a stem
        raise UserError(
            "mae hides patches from a plain vision transformer, which student.backbone is not. Set it to a ViT or DeiT "
            "(vit_tiny_patch16_224, deit_small_patch16_224, ...), or leave mae out."
        )
    return vit


def encode_visible(vit: VisionTransformer, planes: Tensor, visible: Tensor) -> Tensor:
    """Return the tokens (B, prefix + V, D) of the patches whose numbers ``visible`` (B, V) holds, prefix tokens first.

    It is timm's ``forward_features`` with the other patches left out after positions are added.
    """
    tokens = vit._pos_embed(vit.patch_embed(planes))  # noqa: SLF001 (timm has no public name for it)
    prefix, patches = tokens[:, : vit.num_prefix_tokens], tokens[:, vit.num_prefix_tokens :]
    chosen = patches.gather(1, _repeated(visible, patches.shape[-1]))
    encoded: Tensor = vit.norm(vit.blocks(vit.norm_pre(torch.cat([prefix, chosen], dim=1))))
    return encoded


def visible_count(tokens: int, mask: float) -> int:
    """Return how many of the patches stay visible where a share ``mask`` is to be hidden; at least 1."""
    return max(int(tokens * (1 - mask)), 1)


def patchify(planes: Tensor, patch: int) -> Tensor:
    """Return (B, N, patch x patch x 3) from (B, 3, H, W): patches row by row, pixels row by row, colours last."""
    batch, colours, height, width = planes.shape
    cut = planes.reshape(batch, colours, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * colours)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """Return the square (B, 3, H, H) whose :func:`patchify` is (B, N, patch x patch x 3)."""
    batch, count, _ = patches.shape
    side = round(count**0.5)
    cut = patches.reshape(batch, side, side, patch, patch, 3)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, side * patch, side * patch)


def _repeated(numbers: Tensor, width: int) -> Tensor:
    return numbers[..., None].expand(-1, -1, width)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
