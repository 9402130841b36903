"""SAM's tensors under transformers' names, and its sizes from their shapes: Meta's files say neither."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from tskd.errors import UserError
from tskd.models.fitting import Misfit, compare_tensors
from tskd.models.weights import META_SAM_MARKS, SAM_MARKS, read_config, read_weights

State = dict[str, Tensor]

_POSITIONS = ("prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding")
_DECODER_HEADS = 8
"""Heads of the mask decoder's attention in every published SAM; no shape tells it."""
_MLP = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}
_RENAMES = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"^vision_encoder\.blocks\.", "vision_encoder.layers."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.neck\.([02])\.", lambda found: f".neck.conv{int(found[1]) // 2 + 1}."),
    (r"\.neck\.([13])\.", lambda found: f".neck.layer_norm{int(found[1]) // 2 + 1}."),
    (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    (r"\.pe_layer\.positional_encoding_gaussian_matrix$", ".shared_embedding.positional_embedding"),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.([036])\.", lambda found: f".mask_embed.conv{int(found[1]) // 3 + 1}."),
    (r"\.mask_downscaling\.([14])\.", lambda found: f".mask_embed.layer_norm{int(found[1]) // 3 + 1}."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (
        r"\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.([012])\.",
        lambda found: f".{found[1]}.{_MLP[found[2]]}.",
    ),
)  # fmt: skip
"""From segment_anything's module tree to that of transformers."""


def is_meta(names: Iterable[str]) -> bool:
    """Say whether the names are those of Meta's files (MedSAM's are the same)."""
    return set(META_SAM_MARKS) <= set(names)


def under_transformers_names(state: Mapping[str, Tensor]) -> State:
    """Return SAM's tensors as ``SamModel`` names them, whichever of the two ways they are named in ``state``."""
    if not is_meta(state):
        return {**state, **_tied(state)}
    named: State = {}
    for name, tensor in state.items():
        if name in ("pixel_mean", "pixel_std"):
            continue
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        named[name] = tensor
    return {**named, **_tied(named)}


def _tied(state: Mapping[str, Tensor]) -> State:
    """Return the random Fourier matrix under both of its names; files hold it once or twice."""
    held = next((state[name] for name in _POSITIONS if name in state), None)
    return {} if held is None else dict.fromkeys(_POSITIONS, held)


def sam_config(state: Mapping[str, Tensor]) -> SamConfig:
    """Return the sizes of a SAM from the shapes of its tensors (transformers' names; any device).

    Raises KeyError for a tensor that it cannot do without.
    """
    vision = _vision_config(state)
    width = state["mask_decoder.iou_token.weight"].shape[1]
    inner = state["mask_decoder.transformer.final_attn_token_to_image.q_proj.weight"].shape[0]
    prompt = SamPromptEncoderConfig(
        hidden_size=width,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        mask_input_channels=state["prompt_encoder.mask_embed.conv2.weight"].shape[0],
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=width,
        mlp_dim=state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        num_hidden_layers=_count(state, r"mask_decoder\.transformer\.layers\.(\d+)\."),
        num_attention_heads=_DECODER_HEADS,
        attention_downsample_rate=width // inner,
        num_multimask_outputs=state["mask_decoder.mask_tokens.weight"].shape[0] - 1,
        iou_head_hidden_dim=state["mask_decoder.iou_prediction_head.proj_in.weight"].shape[0],
    )
    return SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


def _vision_config(state: Mapping[str, Tensor]) -> SamVisionConfig:
    width, _, patch, _ = state["vision_encoder.patch_embed.projection.weight"].shape
    grid = state["vision_encoder.pos_embed"].shape[1]
    layers = _count(state, r"vision_encoder\.layers\.(\d+)\.")
    tables = [state[f"vision_encoder.layers.{layer}.attn.rel_pos_h"].shape for layer in range(layers)]
    everywhere = [layer for layer, (length, _) in enumerate(tables) if length == 2 * grid - 1]
    return SamVisionConfig(
        hidden_size=width,
        output_channels=state["vision_encoder.neck.conv1.weight"].shape[0],
        num_hidden_layers=layers,
        num_attention_heads=state["vision_encoder.layers.0.attn.qkv.weight"].shape[0] // 3 // tables[0][1],
        image_size=grid * patch,
        patch_size=patch,
        window_size=(min(length for length, _ in tables) + 1) // 2,
        global_attn_indexes=everywhere,
        num_pos_feats=state[_POSITIONS[0]].shape[1],
        mlp_dim=state["vision_encoder.layers.0.mlp.lin1.weight"].shape[0],
    )


def _count(state: Iterable[str], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.match(pattern, name)))


def read_sam(file: Path, *, shapes_only: bool = False) -> tuple[SamConfig, State]:
    """Return sizes and tensors of a SAM checkpoint's file; the sizes are those of ``config.json`` where it lies beside.

    Raises UserError for a file that holds no SAM, or not all of it.
    """
    state = under_transformers_names(read_weights(file, shapes_only=shapes_only).tensors)
    if not set(SAM_MARKS) <= state.keys():
        raise UserError(f"{file} is not a SAM checkpoint: `tskd weights {file}` says what it is.")
    if read_config(file.parent).get("model_type") == "sam":
        return SamConfig.from_pretrained(file.parent), state
    try:
        return sam_config(state), state
    except KeyError as error:
        raise UserError(f"{file} lacks {error} of SAM: bring it anew.") from error


def check_sam(file: Path) -> tuple[SamConfig, Misfit]:
    """Return the sizes of a SAM checkpoint and what it holds beside SAM; UserError lists what it lacks."""
    config, state = read_sam(file, shapes_only=True)
    with torch.device("meta"):
        expected = SamModel(config).state_dict()
    misfit = compare_tensors(state, expected)
    if not misfit.fills:
        raise UserError(
            f"{file} is not a complete SAM: {misfit}. Bring it anew, with the config.json that belongs to it."
        )
    return config, misfit
