"""Labels as a DICOM Segmentation (SEG; PS3.3 A.51, C.8.20), which viewers and archives lay over its source.

highdicom writes it from one stand-in for each source frame, which holds what a segmentation needs to know of it and
nothing else: so frames of classic and of enhanced files go one way, odd values of a scanner stop nothing, and a frame
lies where the NIfTI volume has it. The real references and the patient come in afterwards. No message quotes a tag.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage
from pydicom.valuerep import format_number_as_ds

from tskd import __version__
from tskd.console import warn
from tskd.data.codes import UNCODED, ClassCode
from tskd.data.dicom_files import number, read_head
from tskd.data.dicom_series import Place, functional_group, place_of
from tskd.errors import UserError, name_of

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription

    from tskd.deploy.bundle import Bundle
    from tskd.deploy.inputs import Item

Kind = Literal["binary", "labelmap"]

SUFFIX = ".seg.dcm"
_NAMESPACE = uuid.UUID("5e9a3c1e-6f0d-5b0e-9f5b-2d1c7a4f8e60")
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_COMMON_GROUPS = (0x0008, 0x0010, 0x0012, 0x0020, 0x0032)
"""Of elements that a study and a patient have."""
_COMPRESSION = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_UTF_8 = "ISO_IR 192"
_SERIES_NUMBERS_FROM, _LARGEST_NUMBER = 1000, 2**31 - 1
_LONG_STRING = 64

_FILLED_IN_LATER = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One frame that was segmented."""

    data: Dataset
    """What its file says besides the pixels."""
    index: int | None = None
    """Frame of a multi-frame file; None: the file is one image."""


@dataclass(frozen=True)
class Model:
    """Who found the segments."""

    classes: tuple[str, ...]
    """Names of classes 1 to K."""
    codes: Mapping[str, ClassCode]
    """Of those classes that have one."""
    name: str
    digest: str
    """sha256 of its network, in hexadecimal digits."""


class NoSegmentation(UserError):
    """There can be no SEG of these sources; the text, ``states no ...``, follows their name in a message."""


def segmentation(sources: Sequence[Source], labels: np.ndarray, model: Model, kind: Kind = "binary") -> Dataset:
    """Return the SEG of ``labels``, (frames, H, W) uint8 class indices, one frame a source; raises NoSegmentation.

    Several sources are frames of one series that are parallel and state a place; a single one need state none. The
    same labels of the same sources by the same model get the same UIDs. See :func:`as_bytes` for writing it.
    """
    places = [place_of(source.data, source.index) for source in sources]
    _require_references(sources, places)
    try:
        return _written(sources, places, labels, model, kind)
    except Exception as error:
        raise NoSegmentation(f"cannot be referred to by a DICOM segmentation ({name_of(error)}).") from error


def as_bytes(segmented: Dataset) -> bytes:
    """Return a SEG as the content of a file."""
    content = io.BytesIO()
    segmented.save_as(content, enforce_file_format=True)
    return content.getvalue()


def model_of(bundle: Bundle) -> Model:
    """Return what a bundle says of itself."""
    return Model(bundle.classes, bundle.codes, bundle.dataset or "model", bundle.digest)


@dataclass
class SegmentationFiles:
    """The SEG files of many items; what has none is told once for each reason, at the end."""

    model: Model
    kind: Kind | None
    """None: none are wanted."""
    _without: dict[str, list[Path]] = field(default_factory=dict)

    def content(self, item: Item, planes: Sequence[np.ndarray]) -> bytes | None:
        """Return the SEG file of an item's labels, (H, W) each; None where there is none."""
        if self.kind is None or not item.slices:
            return None
        try:
            sources = [Source(read_head(one.path).data, one.index) for one in item.slices]
            return as_bytes(segmentation(sources, np.stack(planes), self.model, self.kind))
        except NoSegmentation as error:
            self.leave_out(item, str(error))
        return None

    def leave_out(self, item: Item, reason: str) -> None:
        """Note why an item has none; the reason, ``states no ...``, follows the item's name in a message."""
        self._without.setdefault(reason, []).append(item.source)

    def tell(self) -> None:
        """Say of which items there is no SEG, and why."""
        for reason, paths in self._without.items():
            more = f" (and {len(paths) - 1} more: the same)" if len(paths) > 1 else ""
            warn(f"{paths[0]}: {reason} The NIfTI or PNG stands{more}.")


def _require_references(sources: Sequence[Source], places: Sequence[Place]) -> None:
    for source in sources:
        if lacking := [keyword for keyword in _NEEDED if not source.data.get(keyword)]:
            raise NoSegmentation(f"states no {' and no '.join(lacking)}, to which a DICOM segmentation must refer.")
        if "TotalPixelMatrixRows" in source.data:
            raise NoSegmentation("is a tile of a slide, for which no DICOM segmentation is written.")
    if len({(str(source.data.SOPInstanceUID), source.index) for source in sources}) < len(sources):
        raise NoSegmentation(
            "states one SOPInstanceUID for several slices, so a DICOM segmentation could not tell them apart."
        )
    if len(sources) > 1 and not all(_is_placed(*both) for both in zip(sources, places, strict=True)):
        raise NoSegmentation("states no FrameOfReferenceUID, without which a DICOM segmentation holds one frame only.")


def _is_placed(source: Source, place: Place) -> bool:
    return bool(source.data.get("FrameOfReferenceUID")) and all(part is not None for part in place)


def _written(
    sources: Sequence[Source], places: Sequence[Place], labels: np.ndarray, model: Model, kind: Kind
) -> Segmentation:
    from highdicom.seg import Segmentation

    first = sources[0].data
    name = f"tskd {model.name}"
    segmented = Segmentation(
        _stand_ins(sources, places),
        labels,
        kind.upper(),
        _segments(model),
        _uid("series", *_identity(model, kind), first.SeriesInstanceUID),
        min(_SERIES_NUMBERS_FROM + max(int(number(first, "SeriesNumber") or 0), 0), _LARGEST_NUMBER),
        _uid("instance", *_identity(model, kind), *_instances(sources), hashlib.sha256(labels.tobytes()).hexdigest()),
        min(map(_instance_number, sources)),
        manufacturer="tskd",
        manufacturer_model_name=_long_string(name),
        software_versions=__version__,
        device_serial_number=model.digest[:16] or "unknown",
        content_label="TSKD",
        content_description=_long_string(f"Found by a model, not reviewed: {model.name}"),
        series_description=_long_string(name),
        transfer_syntax_uid=ExplicitVRLittleEndian if kind == "binary" else RLELossless,
        specific_character_set=_UTF_8,
    )
    _refer(segmented, sources)
    segmented.copy_patient_and_study_information(_common(first))
    if "FrameOfReferenceUID" not in segmented:
        segmented.PatientOrientation = first.get("PatientOrientation")  # type 2C of such images, PS3.3 C.7.6.1
    segmented.SpecificCharacterSet = _UTF_8
    return segmented


def _stand_ins(sources: Sequence[Source], places: Sequence[Place]) -> list[Dataset]:
    """Return a single image for each frame; its instance UID is a number, by which :func:`_refer` finds the frame."""
    first, plane = sources[0].data, places[0]
    placed = _is_placed(sources[0], plane)
    usual = Dataset()
    usual.SOPClassUID = CTImageStorage if placed else SecondaryCaptureImageStorage
    usual.StudyInstanceUID, usual.SeriesInstanceUID = first.StudyInstanceUID, first.SeriesInstanceUID
    usual.Rows, usual.Columns = first.Rows, first.Columns
    for keyword in _FILLED_IN_LATER:
        setattr(usual, keyword, None)
    usual.update({one.tag: one for one in (first[keyword] for keyword in _COMPRESSION if first.get(keyword))})
    if plane.spacing is not None:
        usual.PixelSpacing = list(plane.spacing)
        usual.SliceThickness = _thickness(sources[0], places)
    if placed:
        usual.FrameOfReferenceUID = first.FrameOfReferenceUID
        usual.PositionReferenceIndicator = first.get("PositionReferenceIndicator")
        assert plane.orientation is not None
        usual.ImageOrientationPatient = _decimals(plane.orientation)
    stand_ins = []
    for count, place in enumerate(places):
        stand_in = Dataset()
        stand_in.update(usual)
        stand_in.SOPInstanceUID = str(count)
        if placed:
            assert place.origin is not None
            stand_in.ImagePositionPatient = _decimals(place.origin)
        stand_ins.append(stand_in)
    return stand_ins


def _thickness(source: Source, places: Sequence[Place]) -> float | None:
    """Return the stated thickness of slices in millimetres, else their distance."""
    stated = number(functional_group(source.data, source.index, "PixelMeasuresSequence"), "SliceThickness")
    if stated is not None and stated > 0:
        return stated
    if len(places) < 2 or places[0].origin is None or places[1].origin is None:
        return None
    return float(np.linalg.norm(places[1].origin - places[0].origin))


def _decimals(values: Iterable[float]) -> list[str]:
    """Return numbers as decimal strings, which have at most 16 characters (PS3.5 6.2)."""
    return [format_number_as_ds(float(value)) for value in values]


def _segments(model: Model) -> list[SegmentDescription]:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        _long_string(model.name), codes.DCM.ArtificialIntelligence, model.digest, f"tskd {__version__}"
    )
    described = []
    for index, name in enumerate(model.classes, start=1):
        category, kind = model.codes.get(name, UNCODED)
        described.append(
            SegmentDescription(
                index,
                _long_string(name),
                CodedConcept(*category),
                CodedConcept(*kind),
                SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm,
            )
        )
    return described


def _refer(segmented: Segmentation, sources: Sequence[Source]) -> None:
    """Put the real references where those to the stand-ins are."""
    instances = {str(source.data.SOPInstanceUID): source.data for source in sources}
    referred = [_reference(data) for data in instances.values()]
    segmented.SourceImageSequence = referred
    series = Dataset()
    series.SeriesInstanceUID = sources[0].data.SeriesInstanceUID
    series.ReferencedInstanceSequence = referred
    segmented.ReferencedSeriesSequence = [series]
    items = [
        item
        for group in segmented.PerFrameFunctionalGroupsSequence
        for derived in group.DerivationImageSequence
        for item in derived.SourceImageSequence
    ]
    for item in {id(item): item for item in items}.values():  # frames of several segments may share one
        source = sources[int(item.ReferencedSOPInstanceUID)]
        item.update(_reference(source.data))
        if source.index is not None:
            item.ReferencedFrameNumber = source.index + 1


def _reference(data: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    return reference


def _common(data: Dataset) -> Dataset:
    """Return what a file says of patient and study, decoded; a value that is none of its type is left out."""
    common = Dataset()
    for tag in [tag for tag in data.keys() if tag.group in _COMMON_GROUPS]:  # noqa: SIM118 (it iterates over elements)
        try:
            common.add(copy(data[tag]))  # a setting would change the source's own element
        except (ValueError, TypeError, ArithmeticError):
            continue
    common.SOPClassUID = CTImageStorage  # any class that highdicom knows
    return common


def _identity(model: Model, kind: Kind) -> tuple[str, ...]:
    coded = (str(model.codes.get(name, UNCODED)) for name in model.classes)
    return kind, __version__, model.name, model.digest, *model.classes, *coded


def _instances(sources: Sequence[Source]) -> Iterable[str]:
    return (f"{source.data.SOPInstanceUID} {source.index}" for source in sources)


def _uid(*parts: object) -> str:
    """Return the UID (PS3.5 B.2) that stands for these texts."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(map(str, parts))).int}"


def _instance_number(source: Source) -> int:
    stated = source.index + 1 if source.index is not None else int(number(source.data, "InstanceNumber") or 1)
    return min(max(stated, 1), _LARGEST_NUMBER)


def _long_string(text: str) -> str:
    """Return a text that DICOM takes as a long string (LO): one line of 64 characters without a backslash."""
    plain = "".join(character if character.isprintable() and character != "\\" else "/" for character in text)
    return plain if len(plain) <= _LONG_STRING else f"{plain[: _LONG_STRING - 1]}…"
