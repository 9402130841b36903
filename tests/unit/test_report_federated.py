"""The pages of federations: every site, the worst of them, who did not answer, and nothing of a patient."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from report_folders import SECRET, SITES, draw_data, make_federated_comparison, make_federation, rounds_of

from tests.journeys.browser import look_at, needs_chromium
from tskd.errors import UserError
from tskd.report import write_report
from tskd.report.blocks import Charts, Facts, Page, Points, Section, Table
from tskd.report.comparison.folder import open_comparison
from tskd.report.comparison.page import comparison_page
from tskd.report.run.federated import federated_page
from tskd.report.run.folder import open_run
from tskd.report.sites import absent, guarantee, labelled_images

ABSENT = {2: ["west"], 5: ["north", "west"]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory.mktemp("hospital") / "ward7", empty=(1,))


@pytest.fixture(scope="module")
def folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_federation(tmp_path_factory.mktemp("federation"), root, rounds=rounds_of(6, ABSENT))


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return federated_page(open_run(folder))


@pytest.fixture(scope="module")
def comparison(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_federated_comparison(tmp_path_factory.mktemp("comparison"), root)


@pytest.fixture(scope="module")
def compared(comparison: Path) -> Page:
    return comparison_page(open_comparison(comparison))


def section_of(page: Page, name: str) -> Section:
    return next(one for one in page.sections if one.name == name)


def tables(section: Section) -> list[Table]:
    return [block for block in section.blocks if isinstance(block, Table)]


# --- one run ---


def test_every_site_has_its_dice_interval_labels_and_bytes(folder: Path, page: Page) -> None:
    section = section_of(page, "sites")
    (table,) = tables(section)
    scores = open_run(folder).summary.federated["sites"]
    rows = {row[0]: dict(zip(table.columns, row)) for row in table.rows}
    assert rows.keys() == SITES.keys()
    for name, (_, labelled) in SITES.items():
        low, high = scores["student"][name]["dice_ci95"]
        assert rows[name]["student"] == f"{scores['student'][name]['dice']:.3f}"
        assert rows[name]["95\u00a0% interval"] == f"{low:.3f} to {high:.3f}"  # of the last model, the student
        assert (rows[name]["labelled images"], rows[name]["test cases"]) == (str(labelled), "8")
    answered = {name: rows[name]["rounds in which it answered"] for name in SITES}
    assert answered == {"north": "5 of 6", "south": "6 of 6", "west": "4 of 6"}
    assert (rows["west"]["MB to it"], rows["west"]["MB from it"]) == ("8.00", "4.00")
    charts = [chart for block in section.blocks if isinstance(block, Charts) for chart in block.charts]
    assert [chart.title for chart in charts] == ["Teacher", "Student"]
    for chart in charts:
        assert all(f"{name} 0." in chart.alt for name in SITES)


def test_the_worst_site_is_named_first(folder: Path, page: Page) -> None:
    dice = open_run(folder).summary.federated["sites"]["student"]["south"]["dice"]
    assert f"it is worst at south: {dice:.3f} (" in page.verdict
    (table,) = tables(section_of(page, "sites"))
    assert [table.rows[place][0] for place in table.strong] == ["south"]
    (models,) = tables(section_of(page, "scores"))
    assert {row[models.columns.index("worst site")] for row in models.rows} == {"south"}


def test_who_did_not_answer_is_told_round_by_round(page: Page) -> None:
    section = section_of(page, "rounds")
    (facts,) = [dict(block.facts) for block in section.blocks if isinstance(block, Facts)]
    assert facts["Did not answer"] == "west in rounds 2, 5; north in round 5"
    assert facts["Sent"] == "30.00 MB to the sites, 15.00 MB from them"
    (table,) = tables(section)
    assert {row[0]: row[-1] for row in table.rows if row[-1] != "–"} == {"2": "west", "5": "north, west"}
    assert "without north, west in 2 of 6 rounds" in page.caveat
    alt = [chart.alt for block in section.blocks if isinstance(block, Charts) for chart in block.charts]
    assert len(alt) == 2  # validation Dice, loss
    assert all(name in text for text in alt for name in SITES)
    assert "weighted mean" in alt[0]


def test_where_all_have_answered_nobody_is_blamed(root: Path, tmp_path: Path) -> None:
    page = federated_page(open_run(make_federation(tmp_path, root, rounds=rounds_of(2))))
    assert "answered" not in page.caveat
    (facts,) = [dict(block.facts) for block in section_of(page, "rounds").blocks if isinstance(block, Facts)]
    assert facts["Did not answer"] == "none: every site is in every round"


def test_where_nothing_was_sent_there_are_no_rounds(root: Path, tmp_path: Path) -> None:
    page = federated_page(open_run(make_federation(tmp_path, root, strategy="alone", method="teacher")))
    assert "rounds" not in [section.name for section in page.sections]
    (table,) = tables(section_of(page, "sites"))
    assert "MB to it" not in table.columns
    assert "nothing is sent" in section_of(page, "scores").lead
    assert "alone the teacher scores Dice" in page.verdict


def test_models_that_lie_elsewhere_are_no_damage_and_scores_that_are_gone_are(root: Path, tmp_path: Path) -> None:
    """Under ``pooled`` the teacher lies where all the images are."""
    run = open_run(make_federation(tmp_path, root, strategy="pooled", method="teacher"))
    shutil.rmtree(run.path / "artifacts" / run.summary.artifacts["teacher"])
    assert "worst at south" in write_report(tmp_path).read_text(encoding="utf-8")
    shutil.rmtree(run.evaluation("teacher").path)
    with pytest.raises(UserError, match="is gone"):
        write_report(tmp_path)


def test_a_site_that_was_there_for_the_validation_alone_did_not_answer() -> None:
    rounds = rounds_of(1)
    rounds[0]["sites"]["west"] = {"down": 1, "up": 1, "score": 0.4}
    assert absent(rounds, list(SITES)) == {1: ["west"]}
    assert labelled_images(rounds) == {"north": 24, "south": 12}


def test_nothing_of_a_patient_and_no_path_is_on_the_page(folder: Path, root: Path) -> None:
    html = write_report(folder).read_text(encoding="utf-8")
    assert not [word for word in (SECRET, str(root), "ward7", "data:image") if word in html]
    assert "tskd federate simulate recipe.yaml --site north=DATA --site south=DATA" in html
    assert not re.findall(r"#[0-9a-f]{6}", "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL)))  # the page's colours


PRIVATE = {
    "secure_aggregation": True, "clip": 1.0, "noise": 0.1, "delta": 1e-5, "unit": "site", "epsilon": 284.3142,
    "noise_from": "seed",
}  # fmt: skip


def facts_of(page: Page, name: str) -> tuple[dict[str, str], ...]:
    return tuple(dict(block.facts) for block in section_of(page, name).blocks if isinstance(block, Facts))


def test_what_is_protected_and_what_is_not_is_told_in_words(root: Path, tmp_path: Path) -> None:
    rounds = rounds_of(2)
    for entry in rounds:
        entry["sites"] = {name: {"down": 1, "up": 1, "images": 1} for name in SITES}
    page = federated_page(open_run(make_federation(tmp_path, root, rounds=rounds, privacy=PRIVATE)))
    kept, gaps = facts_of(page, "privacy")
    assert kept["The server learns"] == "the mean of all sites' updates, and none by itself (SecAgg+)"
    assert kept["One site can change"] == "at most a norm of 1 a round"
    said = "ε = 284 at δ = 1e-05, which promises next to nothing: for a whole site, over 2 rounds, by noise 0.1"
    assert kept["Whoever gets the model"] == said
    assert "seed" in gaps["All, in this simulation"]
    assert "site as a whole" in gaps["Single patients"]
    assert "no number" in section_of(page, "scores").lead
    (table,) = tables(section_of(page, "sites"))
    counts = {row[0]: row[1] for row in table.rows}
    assert counts == {name: str(labelled) for name, (_, labelled) in SITES.items()}  # not the 1 that each has told


def test_over_machines_noise_is_not_taken_back_and_without_any_nothing_is_promised(root: Path, tmp_path: Path) -> None:
    machines = {**PRIVATE, "noise_from": "system", "secure_aggregation": False}
    told = make_federation(tmp_path / "one", root, rounds=rounds_of(1), privacy=machines)
    kept, gaps = facts_of(federated_page(open_run(told)), "privacy")
    assert not [name for name in gaps if "simulation" in name]
    assert (kept["The server learns"], gaps["A site, from the server"]) == (
        "each site's update", "it reads what each site sends"
    )  # fmt: skip
    plain = make_federation(tmp_path / "two", root, strategy="feddistill", rounds=rounds_of(1))  # before there was any
    kept, gaps = facts_of(federated_page(open_run(plain)), "privacy")
    assert kept["The server learns"] == "each site's answers"
    assert "no bound" in kept["Whoever gets the model"]
    assert "betray" in gaps["Single patients"]


@pytest.mark.parametrize(
    ("epsilon", "said"),
    [(0.84, "ε = 0.84 at δ = 1e-05, which is strong"), (10.0, "ε = 10 at δ = 1e-05, which is moderate"),
     (20852.3, "ε = 20,852 at δ = 1e-05, which promises next to nothing")],
)  # fmt: skip
def test_epsilon_is_told_with_what_it_promises(epsilon: float, said: str) -> None:
    assert guarantee(epsilon, 1e-5) == said


# --- a comparison ---


def test_each_strategy_is_told_at_each_site_and_at_its_worst(comparison: Path, compared: Page) -> None:
    section = section_of(compared, "sites")
    table = tables(section)[0]
    assert table.columns[5:] == ("west, 5 labels", "south, 12 labels", "north, 24 labels")  # the smallest first
    assert [row[0] for row in table.rows] == ["Strategy alone", "Strategy pooled", "Strategy fedavg"]
    assert [row[3] for row in table.rows] == ["west", "south", "south"]
    assert all(re.fullmatch(r"0\.\d{3} \(0\.\d{3} to [01]\.\d{3}\)", cell) for row in table.rows for cell in row[5:])
    charts = next(block for block in section.blocks if isinstance(block, Charts)).charts
    assert [chart.title for chart in charts] == ["West, 5 labels", "South, 12 labels", "North, 24 labels"]


def test_differences_are_paired_by_case_within_each_site(comparison: Path, compared: Page) -> None:
    against = {one.title: one for one in tables(section_of(compared, "sites"))}["Against strategy alone, site by site"]
    assert against.columns == ("", "west, 5 labels", "south, 12 labels", "north, 24 labels", "all sites")
    rows = {row[0]: row[1:] for row in against.rows}
    assert rows.keys() == {"Strategy pooled", "Strategy fedavg"}
    found = {line["federated.strategy"]: [] for line in open_comparison(comparison).table("table.csv")}
    for line in open_comparison(comparison).table("table.csv"):
        evaluation = open_comparison(comparison).path / "artifacts" / line["evaluation"]
        found[line["federated.strategy"]].append(site_dice(evaluation, "west"))
    gain = sum(found["fedavg"]) / 2 - sum(found["alone"]) / 2
    assert rows["Strategy fedavg"][0].startswith(f"{gain:+.3f} (")
    assert gain > 0.01  # or a sign could be wrong unseen
    assert rows["Strategy fedavg"][1].startswith("0.000 (0.000 to 0.000)")  # the same masks at south


def site_dice(evaluation: Path, site: str) -> float:
    value: float = json.loads((evaluation / "summary.json").read_text())["sites"][site]["dice"]
    return value


def test_the_question_of_the_smallest_site_is_answered(compared: Page) -> None:
    (points,) = [block.points for block in section_of(compared, "sites").blocks if isinstance(block, Points)]
    assert points[0].startswith(
        "At the smallest site, west (5 labelled images), strategy fedavg, the best of those that"
    )
    assert "from strategy alone by +0." in points[0]
    assert "from strategy pooled by −0." in points[0] or "from strategy pooled by 0." in points[0]


def test_what_was_sent_and_who_was_away_is_told(compared: Page) -> None:
    sent = {one.title: one for one in tables(section_of(compared, "sites"))}["What was sent"]
    rows = {row[0]: row[1:] for row in sent.rows}
    assert rows["Strategy fedavg"][:5] == ("3", "16.00", "8.00", "3", "west in 1 round")
    assert rows["Strategy alone"][:3] == ("–", "0.00", "0.00")


def test_each_strategy_is_told_with_its_protection(compared: Page, root: Path, tmp_path: Path) -> None:
    noisy = comparison_page(open_comparison(make_federated_comparison(tmp_path, root, noise=0.1)))
    plain, private = (
        {
            row[0]: row[-2:]
            for row in {one.title: one for one in tables(section_of(page, "sites"))}["What was sent"].rows
        }
        for page in (compared, noisy)
    )
    assert plain == {**dict.fromkeys(("Strategy alone", "Strategy pooled"), ("–", "–")),
                     "Strategy fedavg": ("as they are", "none")}  # fmt: skip
    assert private["Strategy fedavg"] == (
        "clipped to 1, noise 0.1", "ε = 284 at δ = 1e-05, which promises next to nothing"
    )  # fmt: skip
    assert private["Strategy alone"] == ("–", "–")
    assert "labels" not in tables(section_of(noisy, "sites"))[0].columns[-1]  # under noise no site tells how many


def test_a_comparison_of_sites_shows_no_image_and_no_name(comparison: Path, root: Path) -> None:
    html = write_report(comparison).read_text(encoding="utf-8")
    assert not [word for word in (SECRET, str(root), "ward7", "data:image") if word in html]


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_both_pages_whole(folder: Path, comparison: Path, tmp_path: Path, width: int) -> None:
    for place in (folder, comparison):
        seen = look_at(write_report(place), tmp_path, width=width, dark=width == 390)
        assert (seen.needed, seen.empty_charts, seen.small) == (width, 0, 0)
