"""Too little memory, said in one message with the settings that help instead of an allocator's traceback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from tskd.engine.runtime import Runtime
from tskd.errors import RunFailed
from tskd.recipe.schema import MocoConfig, TrainConfig, section_of

_SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch's allocators say (CUDA and MPS, CPU), and cuBLAS, which asks for memory of its own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether torch raised this because an allocation failed."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)


@contextmanager
def memory_explained(label: str, device: torch.device, remedies: Sequence[str]) -> Iterator[None]:
    """Turn a failed allocation in the block into RunFailed; ``remedies`` name settings, the gentlest first."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        hints = "".join(f"\n  {remedy}" for remedy in remedies)
        raise RunFailed(
            f"{label}: out of memory on {_describe(device)}. What is finished is kept, the last "
            f"checkpoint too. What helps:{hints}"
        ) from error


OTHER_PROGRAMS = "an end to other programs on the same device (nvidia-smi lists those of a GPU)"
ON_THE_CPU = "--set engine.accelerator=cpu for this stage alone (slower; finished stages are found again)"


def training_remedies(settings: TrainConfig, runtime: Runtime) -> list[str]:
    """Return what makes a training need less memory, by the settings it has and does not use yet."""
    section = section_of(settings) or "SECTION"
    remedies = []
    if getattr(settings, "gradient_checkpointing", True) is False:
        remedies.append(f"--set {section}.gradient_checkpointing=true (same result, 40 % slower)")
    smaller = [parts for parts in range(2, settings.batch_size + 1) if settings.batch_size % parts == 0]
    finer = [parts for parts in smaller if parts > (settings.accumulate or 1)]
    if finer and not isinstance(settings, MocoConfig):
        remedies.append(f"--set {section}.accumulate={finer[0]} (parts of a batch; now {settings.accumulate or 1})")
    remedies += half_precision(runtime)
    remedies.append(f"a smaller {section}.batch_size (now {settings.batch_size})")
    sized = section if "image_size" in type(settings).model_fields else "data"
    return [*remedies, f"a smaller {sized}.image_size", OTHER_PROGRAMS]


def inference_remedies(sized: str, runtime: Runtime | None = None) -> list[str]:
    """Return what makes a network need less memory for its answers; ``sized`` names the setting of its image size.

    Without a runtime the network is asked in float32 whatever ``engine.precision`` says.
    """
    return [OTHER_PROGRAMS, ON_THE_CPU, *(half_precision(runtime) if runtime else []), f"a smaller {sized}"]


def half_precision(runtime: Runtime) -> list[str]:
    """Return the setting that halves most of the memory, where it is not used yet."""
    if runtime.precision != "32-true":
        return []
    return ["--set engine.precision=bf16-mixed (16-mixed on a GPU without bf16; `tskd doctor` says which)"]


def _describe(device: torch.device) -> str:
    if device.type != "cuda":
        return {"cpu": "the processor"}.get(device.type, device.type)
    properties = torch.cuda.get_device_properties(device)
    held = torch.cuda.memory_allocated(device)
    return f"{properties.name} ({properties.total_memory / 1e9:.0f} GB, {held / 1e9:.1f} GB of it held here)"
