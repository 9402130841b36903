"""The one training loop, on Lightning Fabric: CPU, one GPU, several GPUs, several nodes."""

from tskd.engine.batches import Batches, ImageBatches
from tskd.engine.fit import FitResult, Training, fit
from tskd.engine.runtime import Runtime, open_runtime

__all__ = ["Batches", "FitResult", "ImageBatches", "Runtime", "Training", "fit", "open_runtime"]
