"""The site where a student will work: its images without labels, never its test images, and what depends on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.made_up import make_prepared
from tskd.artifacts import Store
from tskd.comparison.grid import GridRun
from tskd.comparison.plan import PlanStore, RunPlan, plan_runs
from tskd.data.prepared import OF_TARGET, Prepared
from tskd.data.transfer_set import TransferSet
from tskd.engine import open_runtime
from tskd.errors import UserError
from tskd.experiment.run import Run
from tskd.recipe.schema import DataConfig, Recipe, SourceConfig, TransferConfig, build_recipe
from tskd.stages.label_training import training_labels
from tskd.stages.prepare import build_target
from tskd.stages.transfer import write_transfer

SITES = {"family": "dermoscopy", "train": 30, "test": 12, "size": 32, "scanners": {"a": {}, "b": {"noise": 0.1}}}
TINY: dict[str, Any] = {
    "data": {"image_size": 32, "labels": 6, "phantom": SITES, "where": {"site": "a"}},
    "teacher": {"name": "timm/resnet10t", "weights": "random", "adaptation": "full"},
    "evaluate": {"data": {"phantom": SITES, "where": {"site": "b"}}},
    "control": {"channels": [8, 16, 32]},
    "engine": {"accelerator": "cpu"},
}
OTHER = {"phantom": SITES, "where": {"site": "b"}}


def recipe(**changes: Any) -> Recipe:
    return build_recipe({**TINY, **changes}, "test")


# --- its images ---


def test_images_of_the_target_follow_the_real_ones_without_those_of_the_test(tmp_path: Path) -> None:
    prepared = make_prepared(tmp_path / "source", size=32)
    target = make_prepared(tmp_path / "target", size=48, family="fundus")
    config = TransferConfig(real=2, from_target=5)
    metrics = write_transfer(config, prepared, tmp_path / "set", seed=0, target=target)
    transfer = TransferSet(tmp_path / "set", prepared)
    assert (metrics["real"], metrics["target"]) == (2, 5)
    assert [record.origin for record in transfer.records] == ["real"] * 2 + ["target"] * 5
    assert not any("test" in name for name in transfer.names)
    assert transfer.images[[0, 6]].shape == (2, 32, 32, 3), "squeezed to what the student sees"
    larger = TransferSet(tmp_path / "set", make_prepared(tmp_path / "shown", size=48))
    row = target.row_of(transfer.names[4].removeprefix("target/"))
    assert np.array_equal(larger.images[[4]][0], target.images[row]), "a larger teacher sees them as they were read"


def test_all_of_the_target_may_be_the_whole_transfer_set_and_no_more(tmp_path: Path) -> None:
    prepared = make_prepared(tmp_path / "source", size=32)
    target = make_prepared(tmp_path / "target", size=32, family="fundus")
    metrics = write_transfer(TransferConfig(real=0), prepared, tmp_path / "set", seed=0, target=target)
    assert (metrics["real"], metrics["target"]) == (0, len(target.rows(*OF_TARGET)))
    with pytest.raises(UserError, match=r"transfer\.from_target: 13 images are asked for, transfer\.target has 12"):
        write_transfer(TransferConfig(from_target=13), prepared, tmp_path / "more", seed=0, target=target)


def test_a_folder_without_any_mask_is_a_target(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((40, 50, 3), 50 * number + 50, np.uint8)).save(root / f"images/{number}.png")
    artifact = build_target(Store(tmp_path / "artifacts"), DataConfig(image_size=32), SourceConfig(root=str(root)))
    prepared = Prepared(artifact.path)
    assert prepared.images[prepared.rows(*OF_TARGET)].shape == (3, 32, 32, 3)


# --- what is tested ---


def test_a_target_that_holds_what_is_tested_is_refused(tmp_path: Path) -> None:
    """Among all sites another split is drawn than within the one that is tested, where the data set states none."""
    folder = tmp_path / "data"
    pixels = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(24):
        Image.fromarray(pixels.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"images/{number}.png")
        Image.fromarray(np.eye(32, dtype=np.uint8)).save(folder / f"masks/{number}.png")
    (folder / "split.csv").write_text("id,split,site\n" + "\n".join(f"{k},,{'ab'[k % 2]}" for k in range(24)))
    own = {"root": str(folder), "where": {"site": "b"}}
    data = {"image_size": 32, "root": str(folder), "where": {"site": "a"}}

    def run(target: dict[str, Any]) -> Run:
        settings = recipe(data=data, evaluate={"data": own}, transfer={"target": target})
        return Run(settings, tmp_path / "out", open_runtime(settings.engine))

    found = run(own).target
    assert found is not None
    tested = run(own).tested
    assert Prepared(found.path).cases(*OF_TARGET).isdisjoint(tested.cases("test"))
    with pytest.raises(UserError, match=r"transfer\.target has seen \d+ test cases"):
        _ = run({"root": str(folder)}).target
    copy = tmp_path / "copy"
    (copy / "images").mkdir(parents=True)
    tested_id = next(record.id for record in tested.records if record.part == "test")
    (copy / "images/copy.png").write_bytes((folder / f"images/{tested_id}.png").read_bytes())
    with pytest.raises(UserError, match=r"1 test images are training images of transfer\.target"):
        _ = run({"root": str(copy)}).target


# --- what depends on it ---


def parts(plan: RunPlan) -> dict[str, str]:
    return {part.stage: part.name for part in plan.missing}


def test_a_target_renames_what_looks_at_it_and_nothing_else(tmp_path: Path) -> None:
    styled = {"augment": {"amplitude": 0.5}}
    recipes = {
        "plain": recipe(),
        "none of it": recipe(transfer={"target": OTHER, "from_target": 0}),
        "all of it": recipe(transfer={"target": OTHER, "real": 0}),
        "styles": recipe(teacher={**TINY["teacher"], **styled}, finetune=styled),
        "its styles": recipe(transfer={"target": OTHER}, teacher={**TINY["teacher"], **styled}, finetune=styled),
    }
    runs = [GridRun(name.replace(" ", "_"), {"arm": name}, one) for name, one in recipes.items()]
    plain, none, everything, styles, its = map(parts, plan_runs(runs, tmp_path))
    assert none == plain, "runs with and without the target share their models where they take none of it"
    assert everything["teacher"] == plain["teacher"]
    assert everything["transfer"] != plain["transfer"]
    assert everything["distill"] != plain["distill"]
    assert len({plain["teacher"], styles["teacher"], its["teacher"]}) == 3
    assert len({plain["finetune"], styles["finetune"], its["finetune"]}) == 3


def test_styles_of_the_student_are_in_no_name_of_the_stored_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cost far more than the training that reads them."""
    monkeypatch.setattr("tskd.comparison.plan.DATA_STAGES", {"phantoms", "prepare", "transfer"})  # it is counted
    names = []
    for share in (0.0, 0.5):
        settings = recipe(distill={"cache": "on", "augment": {"amplitude": share}})
        store = PlanStore(tmp_path / "artifacts")
        run = Run(settings, tmp_path, open_runtime(settings.engine), open_store=lambda *_, store=store: store)
        assert run.initialisations.cache is not None
        names.append((run.initialisations.cache.path.name, run.initialisations.distilled.path.name))
    (plain, learned), (styled, learned_styled) = names
    assert plain == styled
    assert learned != learned_styled


def test_more_of_the_target_than_there_is_stops_a_plan(tmp_path: Path) -> None:
    asked = recipe(transfer={"target": OTHER, "from_target": 1000})
    with pytest.raises(UserError, match=r"transfer\.from_target: 1000 images are asked for"):
        plan_runs([GridRun("run", {"arm": "all"}, asked)], tmp_path)


def test_labels_take_the_styles_of_the_target_or_of_all_training_images(tmp_path: Path) -> None:
    prepared = make_prepared(tmp_path / "source", size=32)
    own = training_labels(prepared).others
    assert own is not None
    assert len(own) == len(prepared.rows("train", "unlabelled"))
    store = Store(tmp_path / "artifacts")
    target = build_target(store, DataConfig(image_size=48), SourceConfig.model_validate(OTHER))
    other = training_labels(prepared, target).others
    assert other is not None
    assert len(other) == len(Prepared(target.path).rows(*OF_TARGET))
    assert other[np.array([0])].shape == (1, 32, 32, 3)
