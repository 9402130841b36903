"""The sections on what a run took and on what is needed to make it again. Paths of the machine stay out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from tskd.console import duration
from tskd.deploy.bundle import FOLDER, ONNX, SUMS, read_sums
from tskd.recipe.schema import PHANTOMS, Recipe
from tskd.report.blocks import Block, Code, Facts, Section, Table, section
from tskd.report.run.folder import RunFolder
from tskd.report.run.training import stage_title
from tskd.report.shareable import DATA, flattened, shareable
from tskd.report.text import capital, teraflops, thousands

_DIGITS = 16


def cost_section(run: RunFolder) -> Section | None:
    """Seconds and memory of each stage."""
    rows = tuple(
        (
            capital(stage_title(run, artifact)),
            duration(artifact.manifest["seconds"]),
            thousands(artifact.manifest["peak_memory_mb"]),
            thousands(artifact.manifest.get("peak_gpu_memory_mb") or None),
            artifact.manifest["device"],
        )
        for artifact in run.stages.values()
    )
    total = sum(artifact.manifest["seconds"] for artifact in run.stages.values())
    columns = ("stage", "time", "peak memory (MiB)", "of the GPU (MiB)", "device")
    table = Table(columns, rows, texts=frozenset({0, 4}))
    compute = _compute(run)
    lead = f"As measured when each was made: {duration(total)} in all. A stage found finished is not made again."
    return section("costs", "What it took", lead, [table, compute])


def _compute(run: RunFolder) -> Table:
    """Return the training compute of each method alone, whatever it shared with others in this run."""
    known = [name for name in run.models if "student_gflops" in run.metrics[name]]
    rows = tuple(
        (capital(run.title(name)), *(teraflops(run.metrics[name][key]) for key in ("student_gflops", "teacher_gflops")))
        for name in known
    )
    columns = ("model", "of the student (TFLOP)", "of the teacher (TFLOP)")
    return Table(columns, rows, title="Training compute", note=str(run.summary.budget_rule))


def reproduce_section(run: RunFolder) -> Section | None:
    """Settings, versions, seeds and digests."""
    lead = (
        "The same settings, data and versions give the same digests on the same kind of processor; digests are sha256 "
        "of the files' names and contents."
    )
    blocks: list[Block | None] = [_facts(run), _digests(run), changed_settings(run.summary.recipe), _settings(run)]
    return section("reproduce", "How to make it again", lead, blocks)


def _facts(run: RunFolder) -> Facts:
    federated = bool(run.summary.federated)  # whose models may lie at its sites
    made = (run.evaluation(run.main) if federated else run.student).manifest
    facts = [
        ("Seeds", f"training {run.summary.seed}, split {run.summary.recipe['data']['split_seed']}"),
        ("Teacher", str(run.summary.teacher or "none")),
        ("Python", f"{made['python']}, {made['system']}"),
        ("Libraries", ", ".join(f"{name} {version}" for name, version in made["libraries"].items())),
    ]
    if made["git_commit"]:
        facts.append(("Commit of the working folder", made["git_commit"]))
    if not federated:
        facts.append(("Prepared data", made["inputs"]["data"]))
    if (run.path / FOLDER / SUMS).is_file():
        facts.append((f"Shipped {ONNX}", read_sums(run.path / FOLDER)[ONNX]))
    return Facts(tuple(facts))


def _digests(run: RunFolder) -> Table:
    rows = tuple(
        (capital(stage_title(run, artifact)), name, artifact.digest[:_DIGITS], str(artifact.manifest["seed"]))
        for name, artifact in run.stages.items()
    )
    columns = ("stage", "folder in artifacts", f"digest (first {_DIGITS})", "seed")
    return Table(columns, rows, title="Artifacts", texts=frozenset({0, 1, 2}))


def changed_settings(recipe: Mapping[str, Any]) -> Table | None:
    """Return the settings of a recipe that are not the defaults."""
    now, usual = flattened(shareable(recipe)), flattened(Recipe().model_dump(mode="json"))
    rows = tuple((key, _shown(value), _shown(usual.get(key))) for key, value in now.items() if value != usual.get(key))
    if not rows:
        return None
    return Table(("setting", "here", "default"), rows, title="Settings changed from the defaults", texts=frozenset({0}))


def _settings(run: RunFolder) -> Code:
    text = yaml.safe_dump(shareable(run.summary.recipe), sort_keys=False, allow_unicode=True)
    return Code(text, title=f"All settings: save as recipe.yaml, then {how_to_use(run)} --out OUT")


def how_to_use(run: RunFolder) -> str:
    """Return the command for the settings as the page shows them, without the folders of images."""
    federated = run.summary.recipe.get("federated")
    if not federated:
        drawn = run.summary.recipe.get("data", {}).get("root", PHANTOMS) == PHANTOMS
        return "tskd run recipe.yaml" + ("" if drawn else f" --data {DATA}")
    if run.summary.federated.get("over") == "machines":
        return f"tskd federate server recipe.yaml --keys KEYS --transfer {DATA}"
    real = [name for name, one in federated["sites"].items() if one.get("root", PHANTOMS) != PHANTOMS]
    sites = "".join(f" --site {name}={DATA}" for name in real)
    shared = f" --transfer {DATA}" if federated["transfer"].get("root", PHANTOMS) != PHANTOMS else ""
    return f"tskd federate simulate recipe.yaml{sites}{shared}"


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
