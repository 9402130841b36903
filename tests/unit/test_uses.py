"""What pages say of a student's encoder follows from its ablation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from report_folders import run_file

from tskd.report.blocks import Table
from tskd.report.run.ablation import comparison_uses_section, run_uses_section, uses_sentence
from tskd.report.run.folder import RunFolder
from tskd.report.styles import look_of

USED = {"features_zeroed": 0.1, "features_of_another_image": 0.2, "skips_zeroed": 0.45}


@pytest.mark.parametrize(
    ("without", "said"),
    [
        (0.10, "Without its encoder's features the shipped model scores 0.100 (−0.400)."),
        (0.47, "Without its encoder's features the shipped model scores 0.470 (−0.030)."),
        (0.49, "Without its encoder's features the shipped model scores 0.490 (−0.010): it does without its encoder."),
        (0.60, "Without its encoder's features the shipped model scores 0.600 (+0.100): it does without its encoder."),
    ],
)
def test_a_student_that_loses_nothing_without_its_features_is_said_to_do_without(without: float, said: str) -> None:
    assert uses_sentence(0.5, {**USED, "features_zeroed": without}) == said


def run_with(ablation: dict[str, Any] | None) -> RunFolder:
    told = {} if ablation is None else {"ablation": ablation}
    return RunFolder(Path("nowhere"), run_file(metrics={"student": {"dice": 0.5}}, **told))


def test_a_run_shows_every_part_beside_the_whole() -> None:
    section = run_uses_section(run_with({**USED, "skips_zeroed": None}))
    assert section is not None
    (table,) = section.blocks
    assert isinstance(table, Table)
    assert table.rows == (
        ("as it is", "0.500", ""),
        ("features set to zero", "0.100", "−0.400"),
        ("features of another image", "0.200", "−0.300"),
        ("skip sees no image", "–", ""),
    )
    assert table.note.endswith("– : it has no such part.")


@pytest.mark.parametrize("ablation", [None, dict.fromkeys(USED)])
def test_runs_of_a_u_net_and_of_earlier_versions_have_no_such_section(ablation: dict[str, Any] | None) -> None:
    assert run_uses_section(run_with(ablation)) is None


def test_a_comparison_shows_the_means_over_replicates_of_what_has_an_encoder() -> None:
    def cell(method: str, **means: float) -> Any:
        return SimpleNamespace(look=look_of(method, method), dice=0.5, mean=lambda column: means.get(column))

    used = {f"dice_{part}": value for part, value in USED.items()}
    comparison: Any = SimpleNamespace(groups={"set, 20 labels": [cell("task_kd", **used), cell("control")]})
    section = comparison_uses_section(comparison)
    assert section is not None
    (table,) = section.blocks
    assert isinstance(table, Table)
    assert table.rows == (("Task_kd", "0.500", "0.100", "0.200", "0.450"),)
    comparison = SimpleNamespace(groups={"set": [cell("control")]})
    assert comparison_uses_section(comparison) is None
