"""The recipe: one frozen tree of settings, one section a stage; unknown keys are refused, and lengths are in steps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from tskd.errors import UserError
from tskd.recipe.explanations import describe_mistake
from tskd.recipe.files import Change, as_change, current_settings, read_settings, set_key
from tskd.types import LEAST_TILE

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
"""Smallest and largest value."""
PIXELS = ("auto", "imagenet", "half", "clip", "unit", "minmax")
_NUMBERS = re.compile(r"(-?[\d.]+(e-?\d+)?,){2}-?[\d.]+(e-?\d+)?/([\d.]+(e-?\d+)?,){2}[\d.]+(e-?\d+)?")


def _require_pixels(given: str) -> str:
    if given in PIXELS or (_NUMBERS.fullmatch(given) and "0" not in given.partition("/")[2].split(",")):
        return given
    raise ValueError(
        f"{given!r} is not known. Choose one of: {', '.join(PIXELS)}, or give mean and deviation of red, green and "
        "blue in 0 to 1, such as 0.43,0.41,0.3/0.21,0.16,0.14"
    )


Pixels = Annotated[str, AfterValidator(_require_pixels)]
Flip = Literal["auto", "none", "horizontal", "both"]
PrecisionName = Literal["32-true", "bf16-mixed", "16-mixed"]
Mix = Literal["cut_mix", "copy_paste"]
"""Boxes of other unlabelled images, or of labelled images in unlabelled ones and the other way round."""
PHANTOMS = "phantoms"
"""The value of ``data.root`` that stands for the built-in procedural images."""
RANDOM = "random"
"""``teacher.weights`` of a timm teacher that starts from nothing: for experiments, with ``adaptation: full`` only."""
OFFLINE = "offline"
"""``weights`` that stand for the ImageNet weights of EfficientNet-Lite0 in the package of the extra ``offline``."""


NAMING = "naming"
"""Context of ``model_dump`` where what is made from the settings gets its name from them."""


class Section(BaseModel):
    """A part of the recipe: frozen, and it refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    later_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys that are in no name at their default: they came after artifacts that their default would make again."""

    @model_serializer(mode="wrap")
    def _leave_out_later_keys(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if info.context != NAMING or not self.later_keys:
            return values
        fields = type(self).model_fields
        unused = {key for key in self.later_keys if getattr(self, key) == fields[key].default}
        return {key: value for key, value in values.items() if key not in unused}

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """To Python ``true`` is 1; who writes ``seed: true`` did not mean a seed of 1."""
        kinds = set(_kinds(cls.model_fields[info.field_name or ""].annotation))
        given = value if isinstance(value, list | tuple) else [value]
        if kinds & {int, float} and bool not in kinds and any(isinstance(one, bool) for one in given):
            raise ValueError("should be a number, and a truth value is none")
        return value


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield every type that a type is made of; a literal stands for its own."""
    yield annotation if isinstance(annotation, type) else type(annotation)
    for inner in get_args(annotation):
        yield from _kinds(inner)


AnySection = TypeVar("AnySection", bound=Section)


class ScannerConfig(Section):
    """How a machine shows what another shows: phantoms of one family under several scanners are controlled sites."""

    resolution: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the side to which an image is reduced before it is enlarged again."""
    gamma: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Exponent of the values in [0, 1]."""
    gain: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Factor of the values; what leaves [0, 1] is cut off."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Standard deviation of Gaussian noise, the same in all colours, where white is 1."""


class PhantomConfig(Section):
    """The built-in procedural data set, used when ``data.root`` is ``phantoms``."""

    later_keys: ClassVar[frozenset[str]] = frozenset({"scanners"})
    family: str = "kidney_us"
    """``kidney_us``, ``oral_ulcer``, ``abdomen``, ``dermoscopy`` or ``fundus``."""
    train: Annotated[int, Field(ge=1, le=1_000_000)] = 400
    """Training images, labelled or not."""
    test: Annotated[int, Field(ge=1, le=1_000_000)] = 80
    size: Annotated[int, Field(ge=1, le=4096)] = 128
    scanners: Annotated[Mapping[str, ScannerConfig], Field(min_length=1)] | None = None
    """Sites by name, each with its scanner: the cases are dealt out to them in turn, and ``where: {site: NAME}`` takes
    those of some. Labels are the same under all. None: one, which changes nothing."""


class AppearanceConfig(Section):
    """Changes of grey values as nnU-Net makes them; each befalls an image by itself with its probability ``p_...``.

    The defaults are nnU-Net's (Isensee et al. 2021, trainer of version 2.8), but for what its z-scores allow and images
    in [0, 1] do not: brightness multiplies these values, one draw holds for all three colours, so that grey stays grey,
    and what leaves [0, 1] is cut off.
    """

    p_noise: Share = 0.1
    noise: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Largest standard deviation of Gaussian noise, in standard deviations of the image."""
    p_blur: Share = 0.2
    blur: Range = (0.5, 1.0)
    """Standard deviation of a Gaussian blur in pixels."""
    p_brightness: Share = 0.15
    brightness: Range = (0.75, 1.25)
    """Factor of all values: as often below 1 as above, like that of contrast and the exponent."""
    p_contrast: Share = 0.15
    contrast: Range = (0.75, 1.25)
    """Factor of the distance to the mean; values stay between the image's darkest and brightest."""
    p_low_resolution: Share = 0.25
    low_resolution: Range = (0.5, 1.0)
    """Share of the side to which the image is reduced before it is enlarged again."""
    p_gamma: Share = 0.3
    p_gamma_inverted: Share = 0.1
    """Of the exponent on the negative."""
    gamma: Range = (0.7, 1.5)
    """Exponent of the values between the darkest and the brightest; mean and deviation stay."""

    @model_validator(mode="after")
    def _ranges_that_can_be_drawn(self) -> Self:
        for key in ("blur", "brightness", "contrast", "low_resolution", "gamma"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key} is [{low:g}, {high:g}]: give the smaller value first")
        for key in ("brightness", "contrast", "gamma"):
            low, high = getattr(self, key)
            if not low <= 1 <= high:
                raise ValueError(f"{key} is [{low:g}, {high:g}]: 1, which changes nothing, has to be in it")
        if self.blur[1] > LARGEST_BLUR:
            raise ValueError(f"blur goes up to {self.blur[1]:g} pixels: give at most {LARGEST_BLUR:g}")
        if self.low_resolution[1] > 1 or self.low_resolution[0] < 0.1:
            raise ValueError("low_resolution has to lie between 0.1 and 1: it is the share of the side that is left")
        return self


class AugmentConfig(Section):
    """Random changes of the training images; geometric ones move image and mask alike.

    What lies outside of the old image is black, and background in the mask. Instead of the section one of the names
    ``light`` (the defaults) and ``nnunet`` (nnU-Net's probabilities and ranges in 2-D) may stand.
    """

    later_keys: ClassVar[frozenset[str]] = frozenset(
        {"p_rotate", "p_scale", "p_elastic", "elastic", "appearance", "foreground", "amplitude", "amplitude_band"}
    )
    flip: Flip = "auto"
    """auto: horizontal, but none where a class name says left or right."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Degrees to either side."""
    p_rotate: Share = 1.0
    """Share of the images that are turned."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Largest relative change of size."""
    p_scale: Share = 1.0
    """Share of the images whose size is changed."""
    shift: Share = 0.08
    """Largest shift as a share of the side."""
    elastic: Annotated[float, Field(ge=0, le=0.06)] = 0.04
    """Largest displacement of the points by which images are bent, as a share of the side; at 0.06 nothing folds."""
    p_elastic: Share = 0.0
    """Share of the images that are bent."""
    crop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest part of the side that a crop cuts off, in whole cells of 16 px (with stored teacher answers: of the
    student's feature grid); one size a batch, one place an image."""
    foreground: Share = 0.0
    """Share of the images of a labelled batch that are drawn because they show a class, the classes by turns, however
    rare; their crops (``crop``) hold a pixel of it. For small or rare structures; nnU-Net takes 0.33."""
    photometric: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Strength of brightness, contrast, gamma, colour, blur and noise; 0 switches them off. As with ``appearance`` the
    student sees them and the teacher that it is distilled from does not."""
    appearance: AppearanceConfig | None = None
    """nnU-Net's changes of grey values, after those of ``photometric``; null: none, {}: as nnU-Net makes them."""
    amplitude: Share = 0.0
    """Share of the images whose low frequencies take on, in part, the amplitudes of another image: of the target's
    (``transfer.target``) for teacher and fine-tuning, of the transfer set for distillation, else of the training
    images, unlabelled ones included. Before ``photometric``, and like it not for the teacher that is distilled from."""
    amplitude_band: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Highest frequency that is changed, along either axis, in cycles a pixel; 0.5: all of them."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        """A preset's name stands for its values, so that what is made of the recipe states all of them."""
        if not isinstance(value, str):
            return value
        if value not in AUGMENT_PRESETS:
            raise ValueError(f"choose one of {', '.join(AUGMENT_PRESETS)}, or give the keys of the section")
        return AUGMENT_PRESETS[value]


LARGEST_BLUR = 4.0
"""Pixels: images of 32 px are padded by four times as much."""
AUGMENT_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "light": {},
    "nnunet": {
        "rotate": 180.0, "p_rotate": 0.2, "scale": 0.4, "p_scale": 0.2, "shift": 0.0, "photometric": 0.0,
        "appearance": {},
    },
}  # fmt: skip


class SourceConfig(Section):
    """Where images are and how they are read."""

    later_keys: ClassVar[frozenset[str]] = frozenset({"where"})
    root: str = PHANTOMS
    layout: str = "auto"
    where: Annotated[Mapping[str, tuple[str, ...]], Field(min_length=1)] | None = None
    """Only the images with one of these values in each of these columns of split.csv, e.g. ``{site: [north, south]}``:
    a part of a folder as a site of its own, with a split of its own. None: all."""
    classes: tuple[str, ...] | None = None
    """Names of the foreground classes; None: as the data set says."""
    window: tuple[float, float] | None = None
    """Intensities shown as black and white, in stored units (HU for CT)."""
    annotator: Literal[1, 2] = 1
    """``kidneyus`` and ``drive``: whose labels."""
    structure: Literal["capsule", "regions"] = "capsule"
    """``kidneyus``: one class, or three."""
    sequence: Literal["all", "t1_in", "t1_out", "t2"] = "all"
    """``chaos_mr``"""
    axis: Literal[0, 1, 2] = 2
    """``nifti``: the axis sliced along (0 left-right, 1 back-front, 2 foot-head)."""
    phantom: PhantomConfig = PhantomConfig()

    @field_validator("where", mode="before")
    @classmethod
    def _one_value_or_several(cls, value: object) -> object:
        """A column may have one value instead of a list; YAML reads some values as numbers, a CSV file has texts."""
        if not isinstance(value, Mapping):
            return value
        lists = {column: one if isinstance(one, list | tuple) else [one] for column, one in value.items()}
        if any(not found for found in lists.values()):
            raise ValueError("a column without a value takes no image: name one, or leave the column out")
        plain = (str, int)
        return {
            column: [str(one) if isinstance(one, plain) and not isinstance(one, bool) else one for one in found]
            for column, found in lists.items()
        }


class DataConfig(SourceConfig):
    """Where the images are, how they are read and which labels may be used."""

    later_keys: ClassVar[frozenset[str]] = SourceConfig.later_keys | {"tile"}
    labels: Positive | None = None
    """Label budget in images, the validation part included; None: all labelled training images."""
    label_cases: Positive | None = None
    """Label budget in cases, instead of ``labels``."""
    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=16)] = 128
    """Side of the square that the networks see; predictions are answered at the image's own size."""
    tile: Annotated[int, Field(ge=LEAST_TILE, le=65_536)] | None = None
    """Side in px of the square tiles that larger images are cut into, each squeezed to ``image_size``; the model
    answers them tile by tile. For structures that are lost where a whole image is squeezed. None: whole images."""
    val_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Part of the labelled budget kept for validation. 0: every label trains, in every arm, and nothing is selected:
    each training runs its steps and keeps the averaged weights of the last one."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Cases kept for the test where the data set has no split of its own."""
    split_seed: int = 0
    """Seed of the split: the same split for every seed of training."""
    budget_seed: int | None = None
    """Seed of the order in which budgets take labels: another draw of the labels, the same test; None: split_seed."""
    allow_duplicates: bool = False
    """Go on although an image is in training and test alike."""


class TrainConfig(Section):
    """Settings every training shares."""

    steps: Positive
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 16
    accumulate: Positive = 1
    """Parts a batch is cut into to save memory; the result is the same but for batch norm, what is dropped at random
    (skips of the decoder ``detail``), and images that are mixed (``distill.mix`` and others): within a part."""
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: Share = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the moving average of the weights (and batch norm's statistics) that is validated and kept; 0: the last
    weights."""
    validate_every: Positive = 50
    """Steps between validations. ``diffusion``, ``distill``, ``mae`` and ``moco_v3`` have none: there it says no more
    than that the log is written at these steps too."""
    patience: Positive | None = None
    """Validations without a better score after which training stops; None: never. Refused where there are none."""

    @model_validator(mode="after")
    def _equal_parts(self) -> Self:
        if self.batch_size % (self.accumulate or 1):  # a teacher's may be None: chosen to divide
            raise ValueError(
                f"batch_size {self.batch_size} cannot be cut into {self.accumulate} equal parts: choose a multiple of "
                "accumulate"
            )
        return self


class AugmentedConfig(TrainConfig):
    """Settings of a training whose images are changed at random."""

    augment: AugmentConfig = AugmentConfig()


class TeacherConfig(AugmentedConfig):
    """The large model that is adapted to the task on the labels."""

    later_keys: ClassVar[frozenset[str]] = frozenset(
        {"members", "folds", "mirror", "encoder_lr", "decoder", "beside", "unlabelled"}
    )
    name: str = "auto"
    """``auto`` (what ``weights`` are; without them SAM ViT-B where it is on this machine, else the offline teacher),
    ``sam``, ``offline``, or ``timm/<backbone>``."""
    weights: str | None = None
    """Local file or folder (``tskd weights FILE`` says what it is), or a hub id (fetched only with ``--download``)."""
    pixels: Pixels = "auto"
    """What the weights expect: statistics of ``imagenet``, ``half`` (mean and deviation 0.5), ``clip``, ``unit``
    (0 to 1 as it is), or ``minmax`` (each image stretched to 0 to 1, as MedSAM); auto: as the weight file is known."""
    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=16)] | None = None
    """Side of the square the teacher sees, read from the files; None: 512 for SAM, ``data.image_size`` for others."""
    accumulate: Positive | None = None  # type: ignore[assignment]
    """None: SAM sees at most 4 images of 512 px at once (fewer larger ones, more smaller ones), others the batch."""
    gradient_checkpointing: bool = False
    """Blocks of the encoder are computed again in the backward pass instead of kept: far less memory, 40 %
    more time, the same result. For SAM and networks without batch norm."""
    decoder: Literal["auto", "pyramid", "detail", "unet", "unet_fine"] = "auto"
    """As ``student.decoder``, for teachers that are not SAM; auto: ``pyramid`` for encoders of several scales, else
    ``detail``."""
    adaptation: Literal["auto", "lora", "probe", "full"] = "lora"
    """``lora``: adapters in a frozen encoder; ``probe``: the decoder alone; ``full``: all weights; auto: adapters for
    SAM and other transformers, all weights for convolutional networks."""
    members: Annotated[int, Field(ge=1, le=20)] = 1
    """Teachers that answer together, each trained with another seed; their mean probability, over mirrored images too,
    teaches."""
    folds: bool = True
    """Each of several members leaves out its own fold of the cases, on which it is scored (``held_out_dice``); false:
    each learns from all labels, validation included."""
    mirror: bool = False
    """One teacher answers with the mean over mirrored images too, where ``augment.flip`` allows it."""
    beside: tuple[TeacherConfig, ...] = ()
    """Teachers of other kinds that answer together with this one (SAM beside a convolutional network), each with
    settings of its own; every network has one vote, and features are those of the first."""
    unlabelled: Mix | None = None
    """Half of each batch has no labels, and the teacher learns its own moving average's answers there: ``cut_mix`` as
    the method ``consistency``, ``copy_paste`` as that one, with their default weight and threshold, on the images that
    the student learns from, a member's own fold among them without its masks; None: it learns from labels alone."""
    encoder_lr: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate in the encoder, where all of its weights train."""
    rank: Positive = 4
    alpha: Annotated[float, Field(gt=0)] | None = None
    """None: equal to the rank, so that the update has scale 1 as in SAMed."""
    steps: Positive = 400
    lr: Annotated[float, Field(gt=0)] = 2e-3
    patience: Positive | None = 8

    @model_validator(mode="after")
    def _one_list_of_teachers(self) -> Self:
        if any(other.beside for other in self.beside):
            raise ValueError("beside: teachers in the list have no list of their own: write them one after another")
        return self

    @model_validator(mode="after")
    def _halves_that_mix(self) -> Self:
        if self.unlabelled is not None and self.augment.crop:
            raise ValueError(
                "unlabelled: augment.crop must be 0, since labelled and unlabelled images are mixed at one size"
            )
        return self

    @property
    def kinds(self) -> tuple[TeacherConfig, ...]:
        """The settings of every kind of teacher that answers, this one first."""
        return (self, *self.beside)


class DiffusionConfig(TrainConfig):
    """The model that invents images for the transfer set; used where ``transfer.synthetic`` is above 0."""

    preset: Literal["tiny", "small", "base", "pan"] = "tiny"
    """``tiny``, ``small`` and ``base`` are our own sizes; ``pan`` is the network of Pan et al. 2023 as published."""
    seed: int | None = None
    """Of its training and its images; None: the recipe's. Stated, runs over seeds share one model and its images."""
    image_size: Annotated[int, Field(ge=16, le=512, multiple_of=16)] | None = None
    """None: ``data.image_size``."""
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    schedule: Literal["linear", "cosine"] = "cosine"
    conditional: bool = False
    """Condition on the name of the folder an image lies in."""
    sampler: Literal["dpmsolver++", "ddim", "ddpm"] = "dpmsolver++"
    sampling_steps: Positive = 25
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """Above 1 samples follow their label more closely (classifier-free guidance); 1 is without."""
    grid_minutes: Annotated[float, Field(gt=0)] = 5.0
    """A picture of samples is written this often."""
    gradient_checkpointing: bool = False
    flip: Flip = "auto"
    """Whether training images may be mirrored (horizontally)."""
    steps: Positive = 3000
    lr: Annotated[float, Field(gt=0)] = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.995


class TransferConfig(Section):
    """How many images of which origin the student learns from without labels; None: all there are."""

    later_keys: ClassVar[frozenset[str]] = frozenset({"target", "from_target"})
    target: SourceConfig | None = None
    """Another data set, such as the site where the student will work: its images join the transfer set without their
    labels, its test images excepted. It needs no labels at all. With ``real: 0`` they are the whole of it."""
    from_target: Count | None = None
    """Images of ``target``."""
    real: Count | None = None
    """Unlabelled training images, then the labelled ones."""
    synthetic: Count = 0
    """Images sampled from the diffusion model."""
    augmented: Count = 0
    """Labelled training images under strong augmentation, stored as images of their own."""
    flip: Flip = "auto"
    """Of the augmented images."""
    copy_quantile: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """A synthetic image nearer to a training image than this quantile of train-to-train distances is a copy: out."""


class DistillConfig(AugmentedConfig):
    """The student learns the teacher's features and logits on the transfer set."""

    later_keys: ClassVar[frozenset[str]] = frozenset({"mix", "rounds"})
    encoder_loss: str = "mse"
    """Between features: ``mse``, ``cosine``, ``attention`` or ``relation``."""
    decoder_loss: str = "kl_dice"
    """Between logits: ``mse``, ``kl``, ``dice`` or ``kl_dice``."""
    encoder_weight: Annotated[float, Field(ge=0)] = 0.5
    """Of the loss between features; 0 leaves them out."""
    decoder_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the loss between logits; 0 leaves them out, and the decoder is not trained."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Both logits are divided by it before they are compared."""
    cache: Literal["auto", "on", "off"] = "auto"
    """on: the teacher sees each stored view once and its answers are read from disk; auto decides by cost."""
    views: Positive = 4
    """Stored views of an image in the cache; view 0 is the image itself."""
    mix: Share = 0.0
    """Share of the images into which a box of another of their part of the batch is cut; the teacher's answers are
    mixed alike (cut-mix)."""
    rounds: Annotated[int, Field(ge=1, le=5)] = 1
    """Of ``task_kd``: in each round after the first a new student learns from the teachers and the fine-tuned student
    of the round before, who answer together. What earlier rounds cost counts as the teacher's."""
    steps: Positive = 1200
    lr: Annotated[float, Field(gt=0)] = 1e-3

    @field_validator("cache", mode="before")
    @classmethod
    def _words_of_yaml(cls, value: object) -> object:
        """YAML reads a bare ``on`` or ``off`` as a truth value."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _no_masks_to_go_by(self) -> Self:
        if self.augment.foreground > 0:
            raise ValueError(
                "augment.foreground is above 0, and transfer images have no labels: set it for teacher, finetune or "
                "control"
            )
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> DistillConfig:
        if self.encoder_weight == 0 and self.decoder_weight == 0:
            raise ValueError(
                "encoder_weight and decoder_weight are both 0: there is nothing to distil; set one above 0"
            )
        return self


class PretrainConfig(TrainConfig):
    """What the students that learn from images alone share; how long they learn follows from distillation's compute."""

    steps: Positive = 10**9
    """Upper limit; the number that the compute allows is used where it is smaller."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Smallest crop as a share of the image's area; it is enlarged to the whole."""
    flip: Flip = "auto"


class MaeConfig(PretrainConfig):
    """The student's encoder learns to draw hidden patches (method ``mae``)."""

    mask: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Share of the patches that is hidden."""
    decoder_width: Annotated[int, Field(ge=4, multiple_of=4)] = 96
    decoder_depth: Positive = 4
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    lr: Annotated[float, Field(gt=0)] = 1e-3


class MocoConfig(PretrainConfig):
    """The student's encoder learns to tell two views of an image from other images (method ``moco_v3``)."""

    temperature: Annotated[float, Field(gt=0)] = 0.2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Of the momentum encoder at the start; it rises to 1."""
    hidden: Positive = 1024
    """Width inside the projector and the predictor."""
    width: Positive = 256
    """Of the vectors that are compared."""
    photometric: Annotated[float, Field(ge=0, le=2)] = 2.0
    """Strength of brightness, contrast, gamma, colour, blur and noise."""
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 64
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1

    @model_validator(mode="after")
    def _whole_batches(self) -> MocoConfig:
        if self.accumulate > 1:
            raise ValueError(
                "images of a batch are compared with each other, so accumulate must be 1: lower batch_size"
            )
        return self


class StudentConfig(Section):
    """The small model that is shipped."""

    backbone: str = "vit_tiny_patch16_224"
    """Any timm backbone that gives features; it works at the image size or the nearest side that it can take. ``none``:
    the decoder's skip alone, the arm that shows what an encoder adds."""
    patch: Positive | None = None
    """Side in pixels of a plain vision transformer's patches; None: the largest that cuts the image into 196 tokens or
    more (16 at 224 px, 8 at 128)."""
    decoder: str = "detail"
    """``plain`` (as in the paper), ``detail`` (keeps structures of a few pixels), and for encoders of several scales,
    convolutions and hybrids, ``pyramid``, ``unet`` (joins every scale up to the image's size) or ``unet_fine`` (with a
    skip at that size too, for structures of a pixel or two)."""
    weights: str | None = None
    """Start of the method ``imagenet``: local file with ImageNet (or other) weights of the backbone; or ``offline``,
    the installed weights of the backbone ``tf_efficientnet_lite0``."""
    pixels: Pixels = "auto"
    """As ``teacher.pixels``; without ``weights``, auto is what timm says of the backbone."""
    initialisation: Literal["random", "weights"] = "random"
    """``weights``: every other method starts from that file too, ``scratch`` and ``scratch_total`` excepted."""


class FinetuneConfig(AugmentedConfig):
    """The student learns from the labels."""

    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Factor of the learning rate from one block to the one before it; used where the student starts trained."""
    steps: Positive = 300
    lr: Annotated[float, Field(gt=0)] = 5e-4
    scratch_lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate where the student starts from random weights."""
    keep_start: bool = False
    """A pre-trained initialisation is kept as it is where no later weights score better on the validation part."""


class ControlConfig(AugmentedConfig):
    """A small U-Net trained on the same labels with the student's training compute: what the method has to beat."""

    enabled: bool = True
    channels: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=3, max_length=8)] = (
        16, 32, 64, 128,
    )  # fmt: skip
    """Of each level, at most as many as leave the lowest level 2 pixels of ``data.image_size``."""
    steps: Positive = 10**9
    """Upper limit; the number that the compute allows is used where it is smaller."""
    lr: Annotated[float, Field(gt=0)] = 2e-3


class SelfTrainingConfig(AugmentedConfig):
    """A student learns from the labels and, without labels, from its own moving average (methods ``consistency`` and
    ``copy_paste``), with the student's training compute."""

    weight: Annotated[float, Field(ge=0)] = 0.5
    """Of what is learned from the average; it rises over the first 30 % of the steps."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """The average's answer counts in pixels where its probability is at least this."""
    batch_size: Annotated[int, Field(ge=2, le=65_536, multiple_of=2)] = 16
    """Half of it has labels."""
    steps: Positive = 10**9
    """Upper limit; the number that the compute allows is used where it is smaller."""
    lr: Annotated[float, Field(gt=0)] = 1e-3

    @model_validator(mode="after")
    def _whole_images(self) -> SelfTrainingConfig:
        if self.augment.crop:
            raise ValueError("augment.crop must be 0: labelled and unlabelled images are mixed at one size")
        return self


class StrongUnetConfig(AugmentedConfig):
    """What the strong U-Nets share, which are trained on the same labels until they converge."""

    compute: Literal["own", "equal"] = "own"
    """``own``: ``steps`` of their own; ``equal``: as many steps as the student's compute allows."""
    lr: Annotated[float, Field(gt=0)] = 1e-3


class UnetConfig(StrongUnetConfig):
    """A U-Net of nnU-Net's size with deep supervision (method ``unet``)."""

    channels: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=3, max_length=10)] | None = (
        None
    )
    """Of each level; None: nnU-Net's, 32 to 512 in levels down to 4 to 7 px a side (6 levels at 128 px)."""
    deep_supervision: bool = True
    """Levels below the finest, the lowest two excepted, learn the labels too; weights 1, 1/2, 1/4 and so on."""
    steps: Positive = 3000


class UnetImagenetConfig(StrongUnetConfig):
    """A U-Net over a timm encoder with ImageNet weights, all layers trained (method ``unet_imagenet``)."""

    later_keys: ClassVar[frozenset[str]] = frozenset({"decoder"})
    backbone: str = "tf_efficientnet_lite0"
    """Any timm backbone that gives features of several sizes."""
    decoder: Literal["unet", "unet_fine"] = "unet"
    """As ``student.decoder``."""
    weights: str = OFFLINE
    """Local file with the backbone's weights; or ``offline``, the installed ones of ``tf_efficientnet_lite0``."""
    pixels: Pixels = "auto"
    """As ``student.pixels``."""
    encoder_lr: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Factor of the learning rate in the encoder, which starts trained."""
    steps: Positive = 1000


class EvaluateConfig(Section):
    """How models are scored on the test images."""

    later_keys: ClassVar[frozenset[str]] = frozenset({"norm_statistics"})
    overlays: Count = 9
    """Pictures of the worst, median and best cases."""
    data: SourceConfig | None = None
    """Another data set of the same classes: its test images are scored instead (cross-domain); split as ``data`` is."""
    norm_statistics: Literal["stored", "test"] = "stored"
    """``test``: the statistics of batch norms are those of the test images (at ``data.image_size``, without labels) and
    not of training; for research, since what is shipped keeps its own. Networks without batch norm stay as they are."""


class ExportConfig(Section):
    """The file that is shipped."""

    int8: bool = False
    parity_cases: Positive = 16
    max_dice_drop: Share = 0.001
    """Largest difference of Dice between the network and the exported file."""


class PrivacyConfig(Section):
    """What is done to the sites' updates of the teacher before others learn of them; the unit is a whole site."""

    secure_aggregation: bool = False
    """Updates are masked so that the server can add them up and read none (Flower's SecAgg+)."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest Euclidean norm of a site's update in a round, which it is scaled down to; all sites then weigh the same,
    whatever number of images they have."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the Gaussian noise on the sum of the updates, in units of ``clip``. With it a site tells no
    loss, score or number of images either, and the last round is the teacher."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """That the epsilon of the noise is told for."""

    @model_validator(mode="after")
    def _noise_has_a_unit(self) -> Self:
        if self.noise > 0 and self.clip is None:
            raise ValueError("noise is told in units of clip, and there is none: set clip too, such as 1.0")
        return self


AVERAGING = ("fedavg", "fedprox", "fedbn")
"""Strategies in which the teacher's trained tensors travel."""


class FederatedConfig(Section):
    """Several sites, whose images stay where they are, adapt one teacher, or teach one student, together.

    Every strategy takes ``rounds`` times ``local_steps`` steps at each site, ``alone`` and ``pooled`` included.
    """

    later_keys: ClassVar[frozenset[str]] = frozenset({"privacy"})
    sites: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Name of a site -> what its data differ in from the section ``data``, such as ``{root: FOLDER}``."""
    transfer: dict[str, Any]
    """The images that the student learns from, of no site's patients: what they differ in from ``data``. Their labels,
    if there are any, are not looked at."""
    strategy: Literal["alone", "pooled", "fedavg", "fedprox", "fedbn", "feddistill"] = "fedavg"
    """``fedavg``, ``fedprox`` and ``fedbn`` average what trains in the teacher, the last all but its norms;
    ``feddistill`` averages the answers of the sites' own teachers; ``alone``: each site for itself; ``pooled``: all
    images in one place."""
    rounds: Positive = 10
    local_steps: Positive = 40
    """Of each site in each round."""
    proximal: Annotated[float, Field(ge=0)] = 0.01
    """``fedprox``: weight of half the squared distance to what the round began with."""
    answers: Literal["float16", "top"] = "float16"
    """``feddistill``, what is sent of each pixel: a logit a class in half precision, or the most probable class and its
    probability in a byte each."""
    min_sites: Positive = 2
    """Sites that have to answer in a round; those that do not are left out of it."""
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds that a round waits for an answer."""
    privacy: PrivacyConfig = PrivacyConfig()

    @field_validator("sites")
    @classmethod
    def _names_of_folders(cls, sites: dict[str, Any]) -> dict[str, Any]:
        if odd := [name for name in sites if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name)]:
            raise ValueError(f"{odd[0]!r} names a site and its folder: use letters, digits, - and _")
        return sites

    @model_validator(mode="after")
    def _enough_sites(self) -> Self:
        if self.min_sites > len(self.sites):
            raise ValueError(f"min_sites is {self.min_sites}, and there are {len(self.sites)} sites")
        return self


class EngineConfig(Section):
    """Where and how it is computed.

    Nothing here but ``precision`` (and ``tf32``, which rounds as coarsely as float16) changes a result beyond the
    rounding of float32, and several devices where images are mixed or normed together (``distill.mix``,
    ``teacher.unlabelled``, ``consistency``, ``copy_paste``, batch norm): each does so with its part of the batch.
    """

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: Positive = 1
    num_nodes: Positive = 1
    strategy: Literal["auto", "ddp"] = "auto"
    precision: PrecisionName = "32-true"
    """``16-mixed``: float16 with scaled gradients, for GPUs without bf16 (V100, T4)."""
    tf32: bool = True
    """float32 products may use a GPU's TF32 units where it has them (Ampere and later)."""
    compile: bool = False
    """Training forward passes go through torch.compile: a minute of waiting before each training; no gain on a CPU."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0
    threads: Positive | None = None
    """CPU threads; None: as torch chooses."""


class Recipe(Section):
    """One experiment."""

    later_keys: ClassVar[frozenset[str]] = frozenset({"federated"})

    @model_validator(mode="before")
    @classmethod
    def _under_current_names(cls, values: Any) -> Any:
        return current_settings(values) if isinstance(values, Mapping) else values

    seed: int = 0
    method: str = "task_kd"
    baselines: tuple[str, ...] = ()
    """Methods that are trained and scored beside it, e.g. ``[scratch]``."""
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    transfer: TransferConfig = TransferConfig()
    distill: DistillConfig = DistillConfig()
    mae: MaeConfig = MaeConfig()
    moco_v3: MocoConfig = MocoConfig()
    student: StudentConfig = StudentConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    control: ControlConfig = ControlConfig()
    self_training: SelfTrainingConfig = SelfTrainingConfig()
    unet: UnetConfig = UnetConfig()
    unet_imagenet: UnetImagenetConfig = UnetImagenetConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    engine: EngineConfig = EngineConfig()
    federated: FederatedConfig | None = None
    """Several sites that train together without showing their images; None: all data are here."""

    @model_validator(mode="after")
    def _tiles_that_can_be_scored(self) -> Self:
        if self.data.tile is not None and self.evaluate.norm_statistics == "test":
            raise ValueError("evaluate.norm_statistics=test looks at whole images: leave it or data.tile out")
        return self

    @model_validator(mode="after")
    def _sites_that_can_be_read(self) -> Self:
        if self.federated is not None:
            for name in self.federated.sites:
                self.site_data(name)
            _ = self.transfer_data
        return self

    def site_data(self, name: str) -> DataConfig:
        """Return where the images of a site are and how they are read; Refused where its settings do not fit."""
        assert self.federated is not None
        return self._data_with(self.federated.sites[name], f"federated.sites.{name}")

    @property
    def transfer_data(self) -> DataConfig:
        """Where the images are that all sites share."""
        assert self.federated is not None
        return self._data_with(self.federated.transfer, "federated.transfer")

    def _data_with(self, changes: Mapping[str, Any], source: str) -> DataConfig:
        return build_section(DataConfig, _merged(self.data.model_dump(mode="json"), changes), source)

    if not TYPE_CHECKING:  # checkers know the fields by pydantic's own signature

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise refused(type(self), error, "Recipe") from error


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with others in the places of theirs."""
    merged = dict(values)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def load_recipe(path: Path | None = None, changes: Sequence[str | Change] = ()) -> Recipe:
    """Return the recipe of a file (None: all defaults) with changes (``section.key=value`` too) applied in order.

    Raises UserError naming every key or value that does not fit.
    """
    values: dict[str, Any] = {}
    source = "the settings"
    if path is not None:
        source = str(path)
        values = read_settings(path)
    made = [as_change(change) for change in changes]
    for key, value in made:
        set_key(values, key, value)
    if path is not None and made:  # or a mistake in a change reads as one of the file
        source = f"{source} with {', '.join(change.key for change in made)}"
    return build_recipe(values, source)


def names_folder(changes: Sequence[Change]) -> bool:
    """Tell whether changes name a data folder of the user's, for which settings can be chosen."""
    return next((change.value for change in reversed(changes) if change.key == "data.root"), PHANTOMS) != PHANTOMS


def section_of(settings: Section) -> str | None:
    """Return the recipe's name of a section; None for one that is not part of a recipe."""
    kinds = ((name, field.annotation) for name, field in Recipe.model_fields.items())
    return next((name for name, kind in kinds if kind is type(settings)), None)


def build_recipe(values: Mapping[str, Any], source: str) -> Recipe:
    """Return the recipe of a plain mapping; UserError names ``source`` and every key or value that does not fit."""
    return build_section(Recipe, values, source)


def build_section(kind: type[AnySection], values: Mapping[str, Any], source: str) -> AnySection:
    """Return settings of a kind from a plain mapping; UserError names ``source`` and everything that does not fit."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise refused(kind, error, source) from error


class Refused(UserError):
    """Settings cannot be used."""

    def __init__(self, source: str, problems: str) -> None:
        super().__init__(f"{source} cannot be used:\n{problems}")
        self.problems = problems


def refused(kind: type[Section], error: ValidationError, source: str) -> Refused:
    """Return what pydantic found wrong in settings of a kind, in words."""
    found = error.errors()
    inner = found[0].get("ctx", {}).get("error")
    if isinstance(inner, Refused):  # a recipe's own answer, which pydantic has wrapped
        return Refused(source, inner.problems)
    return Refused(source, "\n".join(f"  {describe_mistake(kind, problem)}" for problem in found))
