"""One run at a time in a folder, and another recipe's results are not replaced without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tskd.errors import UserError
from tskd.recipe.schema import load_recipe
from tskd.run_file import alone_in, changed_settings


def recipe(*overrides: str) -> dict[str, object]:
    return load_recipe(None, overrides).model_dump(mode="json")


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    with alone_in(tmp_path, recipe()), pytest.raises(UserError, match="another `tskd run` is at work"):
        alone_in(tmp_path, recipe("seed=1")).__enter__()
    with alone_in(tmp_path, recipe("seed=1")):
        pass


def test_what_another_recipe_left_is_named_before_it_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"recipe": recipe()}))
    with alone_in(tmp_path, recipe("engine.threads=2")):  # the same command again: the run is taken up
        assert capsys.readouterr().err == ""
    with alone_in(tmp_path, recipe("seed=1", "teacher.rank=16")):
        assert "other settings (seed, teacher.rank): its run.json, bundle and report" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": 3}', '{"recipe": {"seed": 1}}'])
def test_a_run_that_cannot_be_read_is_in_no_ones_way(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with alone_in(tmp_path, recipe()):
        pass
    assert len(changed_settings(tmp_path, recipe())) == (6 if "seed" in text else 0)
