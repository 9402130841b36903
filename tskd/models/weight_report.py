"""What ``tskd weights`` says of a file: what it is, which settings take it, what it expects, whether it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from tskd.machine.disk import file_sha256
from tskd.models.backbones import has_one_scale
from tskd.models.fitting import some
from tskd.models.pixels import MINMAX, statistics_of
from tskd.models.weight_files import WeightFile, identify
from tskd.models.weights import read_weights

_LARGEST_STUDENT_MB = 130
"""Weight files up to this size are offered as a student's start: ResNet50, ViT-Small, not ViT-Base."""
_PIXELS_IN_WORDS = {
    "unit": "0 to 1, as they are",
    MINMAX: "each image stretched to 0 to 1 by its own smallest and largest value",
}


def describe(place: Path) -> dict[str, Any]:
    """Return all that is said of a weight file, ready for JSON; UserError where it is none or of no known kind."""
    known = identify(place)
    read_weights(known.file)  # the numbers too, not the shapes alone
    megabytes = known.file.stat().st_size / 1e6
    return {
        "file": str(known.file),
        "what": known.title,
        "tensors": known.tensors,
        "mb": round(megabytes, 1),
        "unused": list(known.unused),
        "pixels": known.pixels,
        "pixels_in_words": _in_words(known),
        "doubt": known.doubt,
        "inferred": known.inferred,
        "pixels_choices": list(known.choices),
        "image_size": known.native,
        "licence": known.licence,
        "sha256": file_sha256(known.file),
        "as_teacher": _as_teacher(known, place),
        "as_student": _as_student(known, place) if megabytes <= _LARGEST_STUDENT_MB else None,
    }


def as_text(report: Mapping[str, Any]) -> str:
    """Return the report as aligned lines."""
    rows = {
        "what": report["what"],
        "tensors": f"{report['tensors']}, {report['mb']} MB",
        "not used": f"{len(report['unused'])} ({some(report['unused'])})" if report["unused"] else "",
        "pixels": report["pixels_in_words"],
        "": f"not certain: {report['doubt']}" if report["doubt"] else _of_inferred(report),
        "native size": f"{report['image_size']} px; other sizes work, positions are interpolated",
        "licence": f"{report['licence']}{'' if report['licence'] == 'unknown' else ' (of the published weights)'}",
        "sha256": f"{report['sha256']} (compare it with the one on the page you had it from)",
        "as teacher": report["as_teacher"],
        "as student": report["as_student"] or "",
    }
    width = max(map(len, rows)) + 2
    return "\n".join([report["file"], *(f"  {key:<{width}}{value}" for key, value in rows.items() if value)])


def _in_words(known: WeightFile) -> str:
    if known.pixels in _PIXELS_IN_WORDS:
        return f"{known.pixels}: {_PIXELS_IN_WORDS[known.pixels]}"
    if known.pixels is None:
        return "as timm says of the backbone"
    mean, std = ([round(value, 3) for value in values] for values in statistics_of(known.pixels))
    return f"{known.pixels}: mean {mean}, deviation {std} of RGB in 0 to 1"


def _of_inferred(report: Mapping[str, Any]) -> str:
    if not report["inferred"]:
        return ""
    who = "teacher.pixels" if report["as_student"] is None else "teacher.pixels or student.pixels"
    return f"inferred: {report['inferred']}; overrule it by {who}={'|'.join(report['pixels_choices'])}"


def _as_teacher(known: WeightFile, place: Path) -> str:
    name = f" --set teacher.name={known.teacher}" if known.twins else ""
    return f"--set {quote(f'teacher.weights={place}')}{name}{_if_doubtful(known, 'teacher')}"


def _as_student(known: WeightFile, place: Path) -> str | None:
    if known.backbone is None:
        return None
    decoder = "detail" if has_one_scale(known.backbone) else "pyramid"
    return (
        f"--set {quote(f'student.weights={known.file}')} --set student.backbone={known.backbone} "
        f"--set student.decoder={decoder}{_if_doubtful(known, 'student')} --set method=imagenet"
    )


def _if_doubtful(known: WeightFile, who: str) -> str:
    return f" --set {who}.pixels={known.pixels}" if known.doubt else ""
