"""The documentation is a site without a warning, and its notebook runs as it stands."""

from __future__ import annotations

import resource
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import Command

DOCS = Path(__file__).parents[2] / "docs"
MINUTES = 3
"""Of one core."""


def test_the_site_builds_without_a_warning(forked: Command, tmp_path: Path) -> None:
    """Red where a page links to nothing, is in no list, or a docstring that the reference quotes is not well formed."""
    answer = forked("-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", DOCS, tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    reference = (tmp_path / "reference/python.html").read_text(encoding="utf-8")
    assert all(f"tskd.api.{name}" in reference for name in ("experiments.run", "distillation.distill", "model.load"))


def _of_children() -> float:
    """Processor time of the processes that have ended: other jobs on the machine do not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
def test_the_notebook_runs_in_minutes_and_shows_what_it_says(tmp_path: Path) -> None:
    """Red where the Python interface no longer does what the notebook tells people to do."""
    notebook = nbformat.read(DOCS / "notebooks/quickstart.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    began = _of_children()
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    assert 1 < _of_children() - began < 60 * MINUTES
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data.get("text/html", "") for output in outputs if "data" in output]
    assert sum("<table" in html for html in shown) >= 4, "scores, cases, areas, history"
    assert sum("data:image/png" in html for html in shown) >= 2, "pictures of the run and of a prediction"
    assert not [output for output in outputs if output.output_type == "error"]
