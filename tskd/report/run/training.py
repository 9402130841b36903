"""The sections on training curves and on what each model costs to run."""

from __future__ import annotations

from tskd.artifacts import Artifact, read_log
from tskd.console import counted
from tskd.deploy.bundle import FOLDER, ONNX
from tskd.report.blocks import Block, Chart, Charts, Facts, Section, Table, section
from tskd.report.charts import Axis, Estimate, Series, line_chart, line_key, log_places, scatter_chart
from tskd.report.run.folder import BEFORE_FINETUNE, STUDENT, RunFolder
from tskd.report.styles import Look
from tskd.report.text import capital, number, thousands

STAGES = {
    "phantoms": "phantoms",
    "prepare": "preparation",
    "teacher_images": "the teacher's images",
    "teacher": "teacher",
    "diffusion": "diffusion model",
    "samples": "samples",
    "transfer": "transfer set",
    "quality": "judging synthetic images",
    "cache": "the teacher's answers",
    "pseudo_masks": "the teacher's masks",
    "pseudo_label": "learning pseudo-labels",
    "imagenet": "ImageNet weights",
    "pretrain": "pre-training",
    "distill": "distillation",
    "finetune": "fine-tuning",
    "control": "control (U-Net)",
    "unet": "U-Net of nnU-Net's size",
    "unet_imagenet": "U-Net from ImageNet",
    "evaluate": "scoring",
    "ablation": "what the student uses",
    "network": "timing of a network",
    "export": "export",
    "public": "the shared images",
    "pooled": "all images in one place",
    "sites": "the sites' test images",
    "site_models": "one model a site",
    "federated_teacher": "the rounds",
    "federated_answers": "the sites' answers",
    "federated_evaluation": "scores of all sites",
}
"""How a stage is called in a sentence."""
_NOT_LOSSES = frozenset({"step", "gradient_norm", "lr", "seconds"})
SIZES = {"parameters": ("parameters (millions)", 1e-6), "latency_ms": ("milliseconds an image", 1.0)}
"""What a network costs: column -> title and scale."""
_FEW_POINTS = 25
"""Up to so many points a line shows each."""


def stage_title(run: RunFolder, artifact: Artifact) -> str:
    """Return what an artifact is, and for which models where a run has several of the kind."""
    kind = artifact.manifest["stage"]
    title = STAGES.get(kind, kind.replace("_", " "))
    models = [run.title(name) for name in run.models_from(artifact)]
    if len(run.made_by(kind)) == 1 or not models or title in models:
        return title
    return f"{title}, {' and '.join(models)}"


def training_section(run: RunFolder) -> Section | None:
    """The curves of every stage that trains."""
    charts = [chart for artifact in run.stages.values() for chart in _curves(run, artifact)]
    lead = "Loss is the mean since the point before. Validation Dice is measured on the labelled images kept for it."
    return section("training", "Training curves", lead, [Charts(tuple(charts))])


def resources_section(run: RunFolder) -> Section | None:
    """Dice against size and speed, and the exported file's figures."""
    networks = run.summary.networks
    measured = [name for name in run.models if name in networks and name != BEFORE_FINETUNE]  # the student's network
    scored = run.metrics[STUDENT]["dice"] is not None
    blocks: list[Block | None] = [_cost_charts(run, measured)] if measured and scored else []
    blocks += [_cost_table(run, measured) if measured else None, _export_facts(run)]
    image = "one image" if run.prepared.tile is None else "one tile, times the tiles of a test image,"
    lead = f"Time: median of {image} at the size the networks see, in PyTorch on one thread of the training machine."
    return section("resources", "Size and speed", lead, blocks)


def _curves(run: RunFolder, artifact: Artifact) -> list[Chart]:
    lines = read_log(artifact.path)
    title = capital(stage_title(run, artifact))
    charts = []
    if training := [line for line in lines if "loss" in line]:
        names = ["loss", *(name for name in training[0] if name not in _NOT_LOSSES | {"loss"})]
        series = [_series(training, name, index) for index, name in enumerate(names)]
        steep = log_places([value for one in series for value in one.y])
        charts.append(_curve(series, f"{title}: loss", Axis("loss", logarithmic=steep)))
    scored = [line for line in lines if "val_score" in line]
    if len(scored) > 1:  # one point is no curve
        series = [_series(scored, "val_score", 2)]
        charts.append(_curve(series, f"{title}: validation", Axis("validation Dice")))
    return charts


def _curve(series: list[Series], title: str, y: Axis) -> Chart:
    few = len(series[0].x) <= _FEW_POINTS
    return line_chart(series, Axis("step", from_zero=True), y, title=title, points=few, named=len(series) > 1)


def _series(lines: list[dict[str, float]], name: str, index: int) -> Series:
    known = [line for line in lines if name in line]
    look = Look(name.replace("_", " "), index % 8, dashed=index > 0 and name != "val_score")
    return Series(look, [line["step"] for line in known], [line[name] for line in known])


def _cost_charts(run: RunFolder, names: list[str]) -> Charts:
    points = [Estimate(run.look(name), run.metrics[name]["dice"], run.metrics[name]["dice_ci95"]) for name in names]
    charts = []
    for key, (title, scale) in SIZES.items():
        places = [scale * run.summary.networks[name][key] for name in names]
        x = Axis(title, logarithmic=log_places(places))
        charts.append(scatter_chart(points, places, x, Axis("Dice"), title=f"Dice and {title}"))
    return Charts(tuple(charts), keys=tuple(line_key(run.look(name)) for name in names))


def _cost_table(run: RunFolder, names: list[str]) -> Table:
    rows = tuple(
        (
            capital(run.title(name)),
            thousands(run.summary.networks[name]["parameters"]),
            number(run.summary.networks[name]["model_mb"], 1),
            number(run.summary.networks[name]["latency_ms"], 1),
            number(run.metrics[name]["dice"]),
        )
        for name in names
    )
    strong = frozenset({names.index(STUDENT)})
    return Table(("model", "parameters", "MB", "ms an image", "Dice"), rows, strong=strong)


def _export_facts(run: RunFolder) -> Facts:
    """Return what was measured on the exported file; it runs in onnxruntime, the models above in PyTorch."""
    parity, latency = run.summary.export["parity"], run.summary.export["latency"]
    worst, (height, width) = parity["dice_difference_worst"], latency["image"]
    by_threads = latency["ms_by_threads"].items()
    times = ", ".join(f"{ms:g} ms with {counted(int(threads), 'thread')}" for threads, ms in by_threads)
    facts = [
        ("One image" if run.prepared.tile is None else "One tile", f"{width} × {height} pixels: {times}"),
        ("Parameters", thousands(run.summary.export["parameters"])),
        ("Against the network", f"over {parity['images']} images Dice differs by {worst or 0:.2g} at most"),
    ]
    file = run.path / FOLDER / ONNX
    if file.is_file():
        facts.insert(0, ("Size", f"{file.stat().st_size / 1e6:.1f} MB"))
    return Facts(tuple(facts), title="The exported file, model.onnx in onnxruntime")
