"""The check: one pass that names every broken file, counts what is there and never stops."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console

from tskd.data.check import CheckReport, Problem, inspect
from tskd.data.duplicates import settle_duplicates
from tskd.data.layouts import LayoutOptions
from tskd.errors import UserError

SIZE = (48, 64)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six good pairs; the mask of ``good5`` is empty."""
    folder = tmp_path / "Jane Doe 1950" / "data"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(6):
        write_pair(folder, f"good{index}", value=255 * (index < 5))
    return folder


def write_pair(
    root: Path, id_: str, *, value: int = 255, mask_size: tuple[int, int] = SIZE, suffix: str = "png"
) -> Path:
    generator = np.random.default_rng(sum(os.fsencode(id_)))
    path = root / "images" / f"{id_}.{suffix}"
    Image.fromarray(generator.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(path)
    mask = np.zeros(mask_size, np.uint8)
    mask[5:20, 5:20] = value
    Image.fromarray(mask).save(root / "masks" / f"{id_}.png")
    return path


def write_tiff(root: Path, id_: str, values: np.ndarray) -> None:
    path = write_pair(root, id_)
    tifffile.imwrite(path.with_suffix(".tif"), values, photometric="minisblack")
    path.unlink()


def write_bomb(root: Path) -> None:
    """60,000 x 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    write_pair(root, "bomb").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)


def write_mask_of_another_type(root: Path, id_: str) -> None:
    write_pair(root, id_)
    (root / f"masks/{id_}.png").rename(root / f"masks/{id_}.npy")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[60:400] = bytes(340)
    path.write_bytes(content)


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "images/truncated.png": (lambda root: cut(write_pair(root, "truncated")), "cut short"),
    "images/corrupt.png": (lambda root: overwrite_middle(write_pair(root, "corrupt")), "damaged"),
    "images/empty.png": (lambda root: write_pair(root, "empty").write_bytes(b""), "0 bytes"),
    "images/text.png": (lambda root: write_pair(root, "text").write_text("hello"), "not an image"),
    "images/gone.png": (lambda root: (root / "images/gone.png").symlink_to(root / "nowhere.png"), "broken link"),
    "images/pipe.png": (lambda root: os.mkfifo(root / "images/pipe.png"), "pipe"),
    "masks/type.npy": (lambda root: write_mask_of_another_type(root, "type"), "type that is not read"),
    "images/nan.tif": (lambda root: write_tiff(root, "nan", np.full(SIZE, np.nan, np.float32)), "NaN"),
    "images/infinite.tif": (lambda root: write_tiff(root, "infinite", np.full(SIZE, np.inf, np.float32)), "infinite"),
    "images/pages.tif": (lambda root: write_tiff(root, "pages", np.ones((3, *SIZE), np.uint8)), "3 pages"),
    "images/bomb.png": (write_bomb, "million pixels"),
    "images/twice.png": (lambda root: [write_pair(root, "twice", suffix=one) for one in ("png", "jpg")], "same id"),
    "masks/size.png": (lambda root: write_pair(root, "size", mask_size=(30, 30)), "30x30"),
    "masks/values.png": (lambda root: write_pair(root, "values", value=37), "0, 37"),
    "masks/cut.png": (lambda root: (write_pair(root, "cut"), cut(root / "masks/cut.png")), "cut short|not an image"),
    "masks/orphan.png": (lambda root: write_pair(root, "orphan").unlink(), "without an image"),
    "split.csv": (lambda root: (root / "split.csv").write_text("id,split\nnobody,test\n"), "nobody"),
}


def problems_of(report: CheckReport, path: str) -> list[Problem]:
    return [problem for problem in report.problems if problem.path.as_posix() == path]


def rendered(report: CheckReport, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    report.render(Console(file=stream, width=200, force_terminal=terminal))
    return stream.getvalue()


def test_a_good_folder(root: Path):
    (root / "masks/good0.png").unlink()
    seen: list[tuple[int, int]] = []
    report = inspect(root, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert report.usable
    assert report.problems == ()
    assert seen == [(done, 6) for done in range(1, 7)]
    assert report.presence == {f"good{index}": frozenset({1} if index < 5 else ()) for index in range(1, 6)}
    assert report.fingerprints.keys() == {f"good{index}" for index in range(6)}
    assert report.empty_masks == ("good5",)
    assert report.sizes == {SIZE: 6}
    assert report.file_kinds == {"PNG RGB": 6}
    assert report.mask_values == {0: 5, 255: 4}
    assert report.label_map == {0: 0, 255: 1}
    background, foreground = report.classes
    assert (background.images, foreground.images) == (5, 4)
    assert foreground.share == pytest.approx(4 * 15 * 15 / (5 * 48 * 64))
    assert background.share + foreground.share == pytest.approx(1)


def test_every_broken_file_is_named_and_none_stops_the_pass(root: Path):
    for write, _ in BREAKS.values():
        write(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = inspect(root, workers=2)
    text = " ".join(rendered(report).split())
    for path in BREAKS:
        assert any(problem.severity == "error" for problem in problems_of(report, path)), path
        assert path in text
    assert not report.usable
    assert not [problem for problem in report.problems if "good" in str(problem.path)]


@pytest.mark.parametrize("path", BREAKS)
def test_one_broken_file_is_the_only_error(root: Path, path: str):
    write, message = BREAKS[path]
    write(root)
    report = inspect(root, workers=1)
    named = {problem.path.as_posix() for problem in report.problems if problem.severity == "error"}
    assert named - {"masks"} == {path}, "`masks` may be named beside: unclear values concern all of them"
    (problem,) = problems_of(report, path)
    assert re.search(message, problem.message)
    assert not report.usable


def test_nothing_above_the_root_is_told(root: Path):
    for write, _ in BREAKS.values():
        write(root)
    report = inspect(root)
    assert "Jane" not in json.dumps(report.to_json())
    assert "Jane" not in rendered(report)


def test_a_file_without_permission_is_named(root: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "good2" not in str(path) and real(path, mode))
    report = inspect(root)
    assert [problem.path.as_posix() for problem in report.problems] == ["images/good2.png", "masks/good2.png"]
    assert all("permission" in problem.message for problem in report.problems)


def test_one_tone_is_a_warning(root: Path):
    Image.new("L", SIZE[::-1], 90).save(root / "images/good1.png")
    report = inspect(root)
    (problem,) = report.problems
    assert (problem.path.as_posix(), problem.severity) == ("images/good1.png", "warning")
    assert report.usable


def test_too_few_labelled_cases_are_not_usable(root: Path):
    for index in range(4):
        (root / f"masks/good{index}.png").unlink()
    report = inspect(root)
    assert "Too few labelled cases" in report.problems[0].message
    assert not report.usable


def test_stated_classes_and_label_map(root: Path):
    (root / "dataset.yaml").write_text("name: Cells\nclasses: [wall, core]\nlabels: {255: 2}\n")
    report = inspect(root)
    assert report.name == "Cells"
    assert [(one.name, one.images) for one in report.classes] == [("background", 6), ("wall", 0), ("core", 5)]
    assert report.label_map == {0: 0, 255: 2}
    assert report.presence["good0"] == frozenset({2})


def test_an_unreadable_dataset_yaml_is_one_problem(root: Path):
    (root / "dataset.yaml").write_text("colour: blue\n")
    report = inspect(root)
    assert [problem.path.as_posix() for problem in report.problems] == ["dataset.yaml"]


def test_the_odd_mask_among_several_classes_is_named(root: Path):
    for index in range(5):
        write_pair(root, f"good{index}", value=index % 3 + 1)
    write_pair(root, "odd", value=200)
    report = inspect(root)
    assert [problem.path.as_posix() for problem in report.problems] == ["masks", "masks/odd.png"]
    assert len(report.classes) == 4


def test_exact_duplicate_across_stated_splits_is_an_error(root: Path):
    (root / "images/good1.png").write_bytes((root / "images/good0.png").read_bytes())
    (loose,) = inspect(root).problems
    assert (loose.path.as_posix(), loose.severity) == ("images/good0.png", "warning")
    (root / "split.csv").write_text("id,split\ngood0,train\ngood1,test\n")
    report = inspect(root)
    (parted,) = report.problems
    assert (parted.severity, parted.message) == ("error", "shows exactly what images/good1.png shows (train and test).")
    assert not report.usable
    (root / "split.csv").write_text("id,split\ngood0,train\ngood1,val\n")
    (chosen,) = inspect(root).problems
    assert chosen.severity == "warning", "a run takes it: no test score is too good for it"


def test_a_twin_of_a_test_image_goes_to_the_test_with_it(root: Path):
    """``check`` called it usable, and a run that drew it into training refused."""
    (root / "images/good1.png").write_bytes((root / "images/good0.png").read_bytes())
    (root / "split.csv").write_text("id,split\ngood0,test\n")
    report = inspect(root)
    assert report.usable
    settled = settle_duplicates(report.records, report.duplicates)
    assert {record.case for record in settled if record.id in ("good0", "good1")} == {"good0"}
    (root / "images/good2.png").write_bytes((root / "images/good0.png").read_bytes())
    (root / "split.csv").write_text("id,split\ngood1,test\ngood2,train\n")
    report = inspect(root)
    assert [problem.message for problem in report.problems if problem.severity == "error"] == [
        "shows exactly what images/good2.png shows (test and train)."
    ]


def write_brighter(root: Path, source: str, id_: str) -> None:
    path = write_pair(root, id_)
    pixels = np.asarray(Image.open(root / "images" / f"{source}.png"))
    Image.fromarray((pixels * 0.9).astype(np.uint8) + 10).save(path)


def test_near_duplicates_are_one_warning_that_names_the_nearest_pair(root: Path):
    write_brighter(root, "good0", "paler0")
    report = inspect(root)
    (problem,) = report.problems
    assert (problem.path.as_posix(), problem.severity) == ("images/good0.png", "warning")
    assert problem.message == "looks nearly the same as images/paler0.png, of another case."
    write_brighter(root, "good1", "paler1")
    report = inspect(root)
    (problem,) = report.problems
    pairs = {(f"images/{pair.first}.png", f"images/{pair.second}.png") for pair in report.duplicates}
    assert pairs == {("images/good0.png", "images/paler0.png"), ("images/good1.png", "images/paler1.png")}
    assert (problem.path.as_posix(), problem.message.split()[5].rstrip(",")) in pairs
    assert problem.message.endswith(", of another case; there are 2 such pairs among 4 images.")
    assert re.search(r"warning +images/good[01]\.png", rendered(report)), "the file, not all of them"
    assert "8 in 8 cases; in a run 6, images that look alike being one case" in rendered(report)


def test_a_run_takes_the_cases_that_a_data_set_names(root: Path):
    """Near duplicates are joined only where every image is its own case."""
    write_brighter(root, "good0", "paler0")
    (root / "split.csv").write_text("id,split,case\ngood1,,p\ngood2,,p\n")
    assert "7 in 6 cases\n" in re.sub(" +\n", "\n", rendered(inspect(root)))


def test_duplicates_within_a_case_are_expected(root: Path):
    (root / "images/good1.png").write_bytes((root / "images/good0.png").read_bytes())
    (root / "split.csv").write_text("id,split,case\ngood0,,p\ngood1,,p\n")
    assert inspect(root).problems == ()


def test_json_is_json_and_counts(root: Path):
    content = json.loads(json.dumps(inspect(root).to_json()))
    assert content["usable"] is True
    assert (content["images"], content["cases"], content["labelled"], content["empty_masks"]) == (6, 6, 6, 1)
    assert content["label_map"] == {"0": 0, "255": 1}
    assert content["sizes"] == [{"height": 48, "width": 64, "images": 6}]


def test_text_is_plain_without_a_terminal(root: Path):
    report = inspect(root)
    assert "\x1b" not in rendered(report)
    assert "\x1b" in rendered(report, terminal=True)
    assert "Usable: 0 error(s), 0 warning(s)" in rendered(report)


def test_markup_in_a_file_name_is_shown_as_it_is(root: Path):
    write_pair(root, "[bold]x").write_bytes(b"")
    assert "images/[bold]x.png" in rendered(inspect(root))


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        inspect(tmp_path / "nothing")


def test_a_broken_volume_is_named_once(tmp_path: Path):
    nibabel = pytest.importorskip("nibabel")
    generator = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for case in range(4):
        values = generator.uniform(0, 1, (20, 24, 6))
        values[3, 3, : 3 * (case == 3)] = np.nan
        mask = np.zeros(values.shape, np.uint8)
        mask[5:9, 5:9, 2:4] = 1
        for folder, array in (("images", values.astype(np.float32)), ("labels", mask)):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / folder / f"p{case}.nii.gz")
    (tmp_path / "images/p0.nii.gz").rename(tmp_path / "images/p0.NII.GZ")
    report = inspect(tmp_path, "nifti", options=LayoutOptions(classes=("organ",), window=(0, 1)))
    (problem,) = report.problems
    assert problem.path.as_posix() == "images/p3.nii.gz"
    assert set(report.file_kinds) == {"NIfTI"}, "endings in capitals are the same"
    assert "2 more images of this file" in problem.message
    assert len(report.empty_masks) == 4 * 4


def test_volumes_are_counted_and_slices_of_another_size_named(root: Path):
    rows = [f"good{number},,{'ab'[number // 3]},{number % 3}" for number in range(6)]
    (root / "split.csv").write_text("\n".join(["id,split,volume,slice", *rows]) + "\n")
    report = inspect(root)
    assert report.to_json()["volumes"] == 2
    assert re.search(r"volumes +2 of 3 slices, which are scored as volumes", rendered(report))
    assert not [problem for problem in report.problems if "size" in problem.message]
    for kind in ("images", "masks"):
        Image.fromarray(np.zeros((40, 50), np.uint8)).save(root / kind / "good4.png")
    (problem,) = (problem for problem in inspect(root).problems if "size" in problem.message)
    assert (problem.path.as_posix(), problem.severity) == ("images/good4.png", "warning")
    assert "than good3, a slice of the same volume (b)" in problem.message


def write_masks(root: Path, values: dict[str, int], *, inside: slice = slice(5, 20)) -> None:
    for id_, value in values.items():
        mask = np.zeros(SIZE, np.uint8)
        mask[inside, inside] = value
        Image.fromarray(mask).save(root / "masks" / f"{id_}.png")


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "no mask of 6 holds any foreground"), (255, "every labelled pixel of all 6 masks is foreground")],
)
def test_masks_that_say_nothing_are_an_error(root: Path, value: int, said: str):
    """They were usable without a word, and a run on them had Dice 1.000."""
    write_masks(root, {f"good{index}": value for index in range(6)}, inside=slice(None))
    report = inspect(root)
    (problem,) = report.problems
    assert said in problem.message
    assert not report.usable


def test_a_class_that_one_part_lacks_is_a_warning(root: Path):
    (root / "dataset.yaml").write_text("classes: [wall, core]")
    write_masks(root, {"good0": 1, "good1": 1, "good2": 2, "good3": 1, "good4": 1, "good5": 1})
    rows = [f"good{index},{'test' if index == 2 else 'val' if index == 1 else 'train'}" for index in range(6)]
    (root / "split.csv").write_text("id,split\n" + "\n".join(rows))
    report = inspect(root)
    assert [problem.severity for problem in report.problems] == ["warning", "warning"]
    assert "no training image holds the class core" in report.problems[0].message
    assert "nothing to find of the class wall in the test images" in report.problems[1].message
    assert report.usable


def test_what_is_left_out_is_tallied_and_no_problem(root: Path):
    for name in ("._good0.png", ".DS_Store", "Thumbs.db", "readme.TXT", "photo.heic"):
        (root / "images" / name).write_bytes(b"x")
    report = inspect(root)
    assert report.problems == ()
    said = "left out: 3 hidden files of systems and editors; 2 files of other types (.heic, .txt)"
    assert said in report.notes
    assert "Thumbs" not in rendered(report) + json.dumps(report.to_json())


def test_labels_in_alpha_and_turned_masks_are_noted(root: Path):
    for index in range(6):
        alpha = np.zeros(SIZE, np.uint8)
        alpha[5:20, 5:20] = 255
        Image.fromarray(np.dstack([np.zeros_like(alpha)] * 3 + [alpha])).save(root / f"masks/good{index}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    for id_ in ("good0", "good1"):
        with Image.open(root / f"images/{id_}.png") as image:
            image.load()
        image.save(root / f"images/{id_}.png", exif=exif)
    exif[0x0112] = 3
    with Image.open(root / "images/good2.png") as image:
        image.load()
    image.save(root / "images/good2.png", exif=exif)
    report = inspect(root)
    assert [note.partition(" masks")[0] for note in report.notes if "masks have" in note or "EXIF" in note] == [
        "EXIF: 2",
        "alpha: 6",
    ]
    (problem,) = report.problems
    assert (problem.path.as_posix(), problem.severity) == ("masks/good2.png", "warning")
    assert "EXIF" in problem.message
    assert "resize" not in problem.remedy
    assert report.presence == {f"good{index}": frozenset({1}) for index in range(6)}


def test_odd_names_are_shown_and_kept_as_they_are_in_json(root: Path):
    """An escape sequence in a name changed the terminal, bytes that are no UTF-8 ended the table with a traceback."""
    names = ("\x1b[31mred", "new\nline", "right\u202egnp", os.fsdecode("M\xfcller".encode("latin-1")), "x" * 240)
    for name in names:
        write_pair(root, name)
        (root / "masks" / f"{name}.png").write_bytes(b"")
    report = inspect(root)
    text = rendered(report, terminal=False)
    assert not set(text) & {"\x1b", "\u202e", "\udcfc"}
    for shown in (r"\x1b[31mred.png", r"new\nline.png", r"right\u202egnp.png", r"M\xfcller.png"):
        assert f"masks/{shown}" in text
    assert text.count("x") >= 240, "a long name is told whole"
    content = json.dumps(report.to_json())
    assert content.isascii()
    assert "\\udcfc" not in content
    paths = {problem["path"] for problem in json.loads(content)["problems"]}
    assert {f"masks/{name}.png" for name in names[:3]} <= paths
    assert "masks/M\\xfcller.png" in paths


def test_a_file_that_is_gone_when_it_is_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch):
    real = Path.open

    def vanishing(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == "good3.png":
            path.unlink(missing_ok=True)
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", vanishing)
    report = inspect(root, workers=1)
    named = {problem.path.as_posix(): problem.message for problem in report.problems if problem.severity == "error"}
    assert named.keys() == {"images/good3.png", "masks/good3.png"}
    assert all("no such file" in message for message in named.values())
    assert not report.usable


def test_a_decoder_that_raises_anything_ends_nothing(root: Path, monkeypatch: pytest.MonkeyPatch):
    real = Image.open

    def failing(file: Any, *args: Any, **options: Any) -> Image.Image:
        if Path(getattr(file, "name", file)).name == "good3.png":
            raise RecursionError
        return real(file, *args, **options)

    monkeypatch.setattr(Image, "open", failing)
    named = {problem.path.as_posix() for problem in inspect(root).problems if problem.severity == "error"}
    assert named == {"images/good3.png", "masks/good3.png"}


def test_every_faulty_volume_is_listed_and_the_good_ones_are_counted(tmp_path: Path):
    """The first structural fault was all that a check of volumes ever said."""
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).integers(0, 99, (10, 8, 8, 3)).astype(np.int16)
    mask = np.zeros((8, 8, 3), np.uint8)
    mask[2:5, 2:5, 1] = 1
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for case in range(10):
        shift = np.eye(4)
        shift[0, 3] = 7 * (case in (1, 2))
        nibabel.save(nibabel.Nifti1Image(values[case], np.eye(4)), tmp_path / f"images/p{case}.nii")
        nibabel.save(nibabel.Nifti1Image(mask, shift), tmp_path / f"labels/p{case}.nii")
    (tmp_path / "labels/p3.nii").write_bytes(b"cut")
    (tmp_path / "labels/p4.nii").rename(tmp_path / "labels/nobody.nii")
    report = inspect(tmp_path)
    content = report.to_json()
    assert sorted(problem["path"] for problem in content["problems"]) == [
        "labels/nobody.nii", "labels/p1.nii", "labels/p2.nii", "labels/p3.nii",
    ]  # fmt: skip
    assert all(problem["remedy"] for problem in content["problems"])
    assert (content["images"], content["labelled"], content["usable"]) == (21, 18, False)
    text = " ".join(rendered(report).split())
    assert "more:" not in text
    assert "tskd check" not in text
