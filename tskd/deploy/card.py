"""The model card: what a shipped model does, how well, on what grounds, and how to run it. No case is named in it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from markdown_it import MarkdownIt

from tskd.console import printable
from tskd.deploy.description import BundleDescription, InputRule
from tskd.metrics.intervals import interval_text
from tskd.metrics.segmentation import NOTHING_TO_FIND

_TITLES = {
    "student": "**this model**",
    "student_before_finetune": "this model before fine-tuning on labels",
    "scratch": "same network, trained on the labels alone",
    "teacher": "teacher (the model it learned from)",
    "baseline_teacher": "another teacher",
    "rival_teacher": "another teacher",  # as version 0.1 called it
    "control": "control (U-Net, same labels)",
    "unet": "U-Net of nnU-Net's size, same labels",
    "unet_imagenet": "U-Net from ImageNet weights, same labels",
}

_DISTILLED = "distilled from a teacher that was adapted to this task and then trained on labels"
_ORIGINS = {
    "task_kd": _DISTILLED,
    "task_kd_probe": _DISTILLED,
    "agnostic_kd": "distilled from the encoder of a teacher and then trained on labels",
    "pseudo_label": "trained on the answers of a teacher that was adapted to this task and then on labels",
    **dict.fromkeys(
        ("federated_fedavg", "federated_fedprox", "federated_fedbn"),
        "distilled on shared images from a teacher that several sites adapted together",
    ),
    "federated_feddistill": "distilled on shared images from the answers of several sites' teachers",
    "federated_alone": "distilled on shared images from a teacher that was adapted at one site",
    "federated_pooled": "distilled on shared images from a teacher that was adapted to the data of several sites",
    "control_pseudo": "trained on labels and on the answers of a teacher that was adapted to this task",
}
"""Method -> how the network came about, where a teacher had a part in it."""

INTENDED_USE = "Research use only. This is not a medical device: it has not been validated for diagnosis or treatment."
LIMITS = (
    "It was trained on images of one data set and tested on one. On another scanner, protocol, population or disease "
    "expect worse scores than these; test it on labelled images of your own first.",
    "It answers for every image, also for one that shows nothing it knows.",
)


def model_card(description: BundleDescription) -> str:
    """Return the card of a bundle as Markdown."""
    sections = (_head, _use, _data, _scores, _doubt, _classes, _network, _export, _running)
    told = BundleDescription(**{one.name: _as_text(getattr(description, one.name)) for one in fields(description)})
    return "\n\n".join(section(told) for section in sections) + "\n"


def card_html(card: str) -> str:
    """Return Markdown as HTML in which every tag of the card is text, nothing has a style and no link runs a script."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = markdown.parse(card)
    for token in tokens:
        if token.attrs.pop("style", None) == "text-align:right":  # the page's policy has no styles in attributes
            token.attrs["class"] = "number"
    return str(markdown.renderer.render(tokens, markdown.options, {}))


def _as_text(value: Any) -> Any:
    """Return values whose texts are text in Markdown too: names come from other people's files."""
    if isinstance(value, InputRule):
        return replace(value, intensities=_as_text(value.intensities))
    if isinstance(value, Mapping):
        return {key: _as_text(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_text(one) for one in value]
    if not isinstance(value, str):
        return value
    line = " ".join(printable(html.escape(value, quote=False)).split())
    return line.replace("|", "\\|").replace("`", "'").replace("](", "]\\(")


def _head(description: BundleDescription) -> str:
    origin = _ORIGINS.get(description.method, "trained")
    return (
        f"# {description.dataset}: segmentation of {', '.join(description.classes)}\n\n"
        f"A small segmentation network, {origin} by `tskd` (method `{description.method}`)."
    )


def _use(description: BundleDescription) -> str:
    limits = "\n".join(f"- {limit}" for limit in LIMITS)
    return f"## Intended use and limits\n\n{INTENDED_USE}\n\n{limits}"


def _data(description: BundleDescription) -> str:
    images, cases = description.images, description.cases
    uses = {
        "train": "trained on, with labels",
        "val": "selection of weights, with labels",
        "unlabelled": "without a label in use, open to training",
        "test": "scored once, never trained on",
    }
    rows = "\n".join(f"| {use} | {images[part]} | {cases[part]} |" for part, use in uses.items())
    return (
        f"## Data\n\n| use | images | cases |\n|---|---:|---:|\n{rows}\n\n"
        "A case is a patient or a volume, or images that look alike; no case of the test is in another row. "
        f"sha256 of the prepared data: `{description.training_data_sha256}`."
    )


def _scores(description: BundleDescription) -> str:
    scores = description.scores
    unit = _unit(next(iter(scores.values()), {}))
    lines = [_score_row(_TITLES.get(name, name), scores[name], unit) for name in _ordered(scores)]
    level = next((one.get("level", "image") for one in scores.values()), "image")
    what = "of whole volumes, their slices stacked," if level == "volume" else "of single images"
    dice = "3-D Dice" if level == "volume" else "Dice"
    return (
        f"## Scores on the test images{_tested_on(description)}\n\n"
        f"| model | {dice} | 95 % interval | HD95 ({unit}) | cases | missed | false positive |\n"
        "|---|---:|---|---:|---:|---:|---:|\n" + "\n".join(lines) + "\n\n"
        f"Means over cases {what} at their own size, bootstrap intervals over cases. Where mask and prediction are "
        f"both empty Dice is 1 and the distance 0; where only one is, Dice is 0 and the distance the {level} diagonal "
        f"(missed, false positive: counted over {level}s and classes).{_by_slice(scores)}{_baselines(scores)}"
    )


def _by_slice(scores: Mapping[str, Any]) -> str:
    """Return this model's Dice over slices, where the table is of volumes."""
    by_slice = scores.get("student", {}).get("slices")
    if by_slice is None:
        return ""
    return (
        f" Slice by slice this model has Dice {_number(by_slice, 'dice')}; a slice that is rightly empty counts as 1."
    )


def _tested_on(description: BundleDescription) -> str:
    tested = {scores.get("dataset", description.dataset) for scores in description.scores.values()}
    others = sorted(tested - {description.dataset})
    return f" of {', '.join(others)}, which it was not trained on" if others else ""


def _baselines(scores: Mapping[str, Any]) -> str:
    own = scores.get("student", {}).get("dice")
    better = [] if own is None else [name for name in scores if (scores[name].get("dice") or 0) > own]
    if not better:
        return ""
    return "\n\nBetter than this model by Dice: " + ", ".join(_TITLES.get(name, name) for name in better) + "."


def _doubt(description: BundleDescription) -> str:
    doubt = description.doubt
    calibrated = (
        f"Probabilities were calibrated on {doubt['calibrated_on']} validation images (temperature "
        f"{doubt['temperature']:.2f}); expected calibration error on the test images {doubt['ece']:.3f}, "
        f"{doubt['ece_uncalibrated']:.3f} before."
        if doubt["calibrated_on"]
        else f"Probabilities are not calibrated (too few validation images); expected calibration error on the test "
        f"images {doubt['ece']:.3f}."
    )
    sentences = [calibrated, _ordered_by(doubt), _flagged(doubt), _familiar(doubt)]
    return "## When to doubt it\n\n" + " ".join(one for one in sentences if one)


def _ordered_by(doubt: Mapping[str, Any]) -> str:
    if doubt["ordering"] is None:
        return ""
    return (
        f"Rank correlation of its confidence with Dice over the test images: "
        f"{doubt['ordering']['rank_correlation']:.2f} ({interval_text(doubt['ordering']['ci95'], '{:.2f}'.format)})."
    )


def _flagged(doubt: Mapping[str, Any]) -> str:
    told = [doubt["dice_looked_at"], doubt["dice_rest"]]
    if None in told:
        worth = ""
    else:
        worth = f": {doubt['looked_at']} of {doubt['images']} test images, Dice {told[0]:.3f} against {told[1]:.3f}"
    return (
        f"Look at every answer with a confidence below {doubt['look_below']:.3f} ({doubt['look_share']:.0%} of "
        f"{doubt['chosen_images']} {doubt['chosen_on']} images), or from an image unlike the training images{worth}."
    )


def _familiar(doubt: Mapping[str, Any]) -> str:
    if not doubt["familiar_images"]:
        return "Whether an image is like the training images is not measured for this network."
    return (
        f"Unfamiliarity is measured from {doubt['familiar_images']} images; {doubt['unfamiliar']:.0%} of the test "
        "images are called unlike them."
    )


def _classes(description: BundleDescription) -> str:
    by_class = description.scores.get("student", {}).get("classes", {})
    unit = _unit(description.scores.get("student", {}))
    lines = ["| 0 | background | | | |"]
    for label, name in enumerate(description.classes, start=1):
        one = by_class.get(str(label), {})
        lines.append(f"| {label} | {name} | {_number(one, 'dice')} | {_interval(one)} | {_distance(one, unit)} |")
    return (
        f"## Classes\n\n| index | name | Dice | 95 % interval | HD95 ({unit}) |\n|---:|---|---:|---|---:|\n"
        + "\n".join(lines)
    )


def _network(description: BundleDescription) -> str:
    settings = ", ".join(f"{key} `{value}`" for key, value in description.arguments.items())
    versions = ", ".join(f"{name} {version}" for name, version in description.versions.items())
    window = description.input.window
    rules = description.input.intensities or ["intensities: 8-bit values as they are"]
    tiles = f"; larger images in tiles of {description.tile} px" if description.tile else ""
    stated = f"{window[0]:g} becomes black, {window[1]:g} white" if window else "; ".join(rules)
    return (
        f"## Network\n\n- {settings}, {description.export['parameters']:,} parameters; sees images at "
        f"{description.image_size} px, answers at their own size{tiles}\n"
        f"- input: RGB, grey repeated; {stated}\n"
        f"- made with {versions}"
    )


def _export(description: BundleDescription) -> str:
    export = description.export
    parity, latency = export["parity"], export["latency"]
    times = ", ".join(f"{ms:g} ms with {n} thread(s)" for n, ms in latency["ms_by_threads"].items())
    height, width = latency["image"]
    shown = "tile" if description.tile else "image"
    lines = [
        f"- `model.onnx` against the network on {parity['images']} images: Dice differs by "
        f"{parity['dice_difference_worst']:.1e} at most ({parity['dice_difference_mean']:.1e} on average), a "
        f"probability by {parity['probability_difference_worst']:.1e} at most",
        f"- one {width}x{height} {shown} on the exporting machine's processor: {times} (median)",
    ]
    if "int8" in export:
        verdict = "shipped as `model.int8.onnx`" if export["int8"]["shipped"] else "not shipped"
        lines.append(f"- int8: {verdict}: {export['int8']['reason']}")
    return "## Exported file\n\n" + "\n".join(lines)


def _running(description: BundleDescription) -> str:
    graph = "all processing is in the graph"
    if description.tile:
        graph += f", but for tiles: it sees what it is given as a whole, so cut images beyond {description.tile} px"
    return (
        "## Running it\n\n"
        "```\ntskd predict MODEL_FOLDER IMAGES --out PREDICTIONS\n```\n\n"
        f"or with onnxruntime alone, {graph}:\n\n"
        "```python\n"
        'import os\n\nos.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: else it may report on its use\n'
        "import numpy, onnxruntime\nfrom PIL import Image\n\n"
        'session = onnxruntime.InferenceSession("model.onnx")\n'
        'image = numpy.asarray(Image.open("image.png").convert("RGB"))          # (H, W, 3) uint8, any size\n'
        "# (H, W) and (K + 1, H, W); the other outputs, by name: session.get_outputs()\n"
        'classes, probabilities = session.run(["classes", "probabilities"], {"image": image})\n'
        "```\n\n"
        "`sha256sum --check SHA256SUMS` proves that the files are those that were exported."
    )


def _ordered(scores: Mapping[str, Any]) -> list[str]:
    known = [name for name in _TITLES if name in scores]
    return known + [name for name in scores if name not in _TITLES]


def _unit(scores: Mapping[str, Any]) -> str:
    return "mm" if "hd95_mm" in scores else "px"


def _score_row(title: str, scores: Mapping[str, Any], unit: str) -> str:
    counts = " | ".join(str(scores.get(name, "")) for name in ("n_cases", "missed", "false_positive"))
    return f"| {title} | {_number(scores, 'dice')} | {_interval(scores)} | {_distance(scores, unit)} | {counts} |"


def _number(scores: Mapping[str, Any], key: str) -> str:
    return f"{scores[key]:.3f}" if scores.get(key) is not None else ""


def _distance(scores: Mapping[str, Any], unit: str) -> str:
    return f"{scores[f'hd95_{unit}']:.1f}" if scores.get(f"hd95_{unit}") is not None else ""


def _interval(scores: Mapping[str, Any]) -> str:
    if "dice" in scores and scores["dice"] is None:
        return NOTHING_TO_FIND
    return interval_text(scores.get("dice_ci95"))
