"""SAM as the teacher of the whole method, with a tiny SAM saved as transformers saves the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import SamConfig, SamModel

from tskd.engine import open_runtime
from tskd.errors import UserError
from tskd.experiment.pipeline import execute
from tskd.experiment.run import Run
from tskd.recipe.schema import build_recipe

SETTINGS = {
    "data": {"image_size": 32, "labels": 8, "phantom": {"family": "abdomen", "train": 16, "test": 4, "size": 48}},
    "teacher": {"name": "sam", "image_size": 64, "steps": 6, "batch_size": 4, "rank": 2},
    "distill": {"steps": 6, "batch_size": 4, "cache": "off"},
    "finetune": {"steps": 4, "batch_size": 4},
    "student": {"backbone": "test_vit", "patch": 16},
    "control": {"enabled": False},
    "engine": {"accelerator": "cpu"},
}


def tiny_sam(folder: Path) -> Path:
    """Save a SAM of 128 px and some thousand parameters with ``save_pretrained``."""
    vision = {
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 128, "patch_size": 16,
        "window_size": 4, "global_attn_indexes": [1, 3], "output_channels": 32, "mlp_dim": 64, "num_pos_feats": 16,
    }  # fmt: skip
    prompt = {"hidden_size": 32, "image_size": 128, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
    torch.manual_seed(0)
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    SamModel(config).save_pretrained(folder)
    return folder


def test_a_tiny_sam_teaches_through_the_whole_method(tmp_path: Path) -> None:
    teacher = {**SETTINGS["teacher"], "weights": str(tiny_sam(tmp_path / "sam-tiny"))}
    recipe = build_recipe({**SETTINGS, "teacher": teacher}, "test")
    summary = execute(Run(recipe, tmp_path / "out", open_runtime(recipe.engine))).summary
    assert summary.teacher == "SAM (sam-tiny)"
    assert {"teacher", "student", "student_before_finetune"} <= summary.metrics.keys()
    folder = tmp_path / "out/artifacts" / summary.artifacts["teacher"]
    trained = json.loads((folder / "model.json").read_text())["trained"]
    adapted = [name for name in trained if name.startswith("encoder.")]
    assert adapted
    assert all(".q.lora_" in name or ".v.lora_" in name for name in adapted)


def test_without_weights_the_message_says_how_to_bring_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    recipe = build_recipe(SETTINGS, "test")
    with pytest.raises(UserError, match=r"(?s)model\.safetensors.*sha256.*offline"):
        _ = Run(recipe, tmp_path / "out", open_runtime(recipe.engine)).teachers.adapted
