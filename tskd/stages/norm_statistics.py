"""Batch norms under the statistics of the test images, which a site without labels has too."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from tskd.data.prepared import Prepared
from tskd.engine.batches import to_images
from tskd.recipe.schema import EvaluateConfig

ADAPTED_AT_ONCE = 32
"""Test images in a batch whose statistics batch norms take on."""
STATISTICS = {"running_mean", "running_var"}
"""The buffers of a batch norm, be it torch's, a frozen one of timm's or of ours."""


def as_tested(model: nn.Module, config: EvaluateConfig, prepared: Prepared, device: torch.device) -> tuple[str, ...]:
    """Bring a model to the device and into the state in which the settings test it; say what was changed for it."""
    model.to(device).eval()
    return adapt_norms(model, prepared, device) if config.norm_statistics == "test" else ()


def naming(config: EvaluateConfig) -> dict[str, str]:
    """Return what the name of a result depends on beside model and data; older ones were of stored statistics."""
    return {} if config.norm_statistics == "stored" else {"norm_statistics": config.norm_statistics}


def adapt_norms(model: nn.Module, prepared: Prepared, device: torch.device) -> tuple[str, ...]:
    """Give a model's batch norms, frozen ones too, the statistics of the test images; say what was done.

    Means and variances are averaged over batches of ``ADAPTED_AT_ONCE``, each normalised by its own on the way, as in
    training. Source: Li et al. 2016 (AdaBN). No label is read, but all test images are, so the scores are those of a
    whole set.
    """
    norms = [module for module in model.modules() if dict(module.named_buffers(recurse=False)).keys() >= STATISTICS]
    rows = prepared.rows("test")
    if not norms or len(rows) < 2:
        why = "there is one test image" if norms else "the network has no batch norm"
        return (f"norm_statistics=test changed nothing: {why}",)
    found: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in norms}

    def take(norm: nn.Module, seen: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(seen[0].transpose(0, 1).flatten(1), dim=1, correction=0)
        found[norm].append((mean, variance))
        _set_statistics(norm, mean, variance)

    with ExitStack() as hooks, torch.inference_mode():
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(take).remove)
        for part in np.array_split(rows, -(-len(rows) // ADAPTED_AT_ONCE)):
            model(to_images(prepared.images[part]).to(device))
        for norm, batches in found.items():
            _set_statistics(norm, *(torch.stack(values).mean(0) for values in zip(*batches)))
    return (f"statistics of {len(norms)} batch norms are those of the {len(rows)} test images",)


def _set_statistics(norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
    norm.get_buffer("running_mean").copy_(mean)
    norm.get_buffer("running_var").copy_(variance)
