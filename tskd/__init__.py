"""Task-specific knowledge distillation for medical image segmentation."""

import os

__version__ = "0.1.0"

SILENCED = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime 1.32: a device id and queued events in the user's cache, sent home
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, for transformers and diffusers too
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
    "DO_NOT_TRACK": "1",
}
"""What libraries read, most of them once when they are imported, before they report on their user."""
# here, because this module runs before any other of the package, and so before all that imports one of those libraries
os.environ.update(SILENCED)
