"""What of a folder is predicted: the one rule of what counts as data, and nothing passed over that could be a scan."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from tskd.data.images import read_image
from tskd.deploy.inputs import Failure, Item, find_items, items_in
from tskd.errors import UserError


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path, format="PNG")


def items(root: Path, results: Path) -> list[str]:
    return [one.source.relative_to(root).as_posix() for one in items_in(root, results, 2) if isinstance(one, Item)]


def failures(root: Path, results: Path) -> dict[str, str]:
    found = (one for one in items_in(root, results, 2) if isinstance(one, Failure))
    return {one.source.relative_to(root).as_posix(): one.problem for one in found}


def test_hidden_files_and_the_results_are_no_inputs(tmp_path: Path) -> None:
    """Red where a copy of Jupyter's is predicted, or where ``._scan.nii.gz`` counts as a damaged volume."""
    root = tmp_path / ".study" / "in"
    write(
        root / "a.PNG", root / "b/c.png", root / ".ipynb_checkpoints/a.png", root / "out/a.png", root / "@eaDir/t.png"
    )
    (root / "._v.nii.gz").write_bytes(b"\0\5\26\7")
    (root / "Thumbs.db").write_bytes(b"x")
    (root / "notes.txt").write_text("x")
    assert items(root, root / "out") == ["a.PNG", "b/c.png"]
    assert failures(root, root / "out") == {}


def test_linked_folders_are_predicted_once(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    write(root / "a.png", elsewhere / "b.png")
    (root / "link").symlink_to(elsewhere)
    (root / "again").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(root)
    assert items(root, tmp_path / "out") == ["a.png", "again/b.png"]


def test_what_cannot_be_looked_at_is_a_failure_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe held predict for ever; a broken link and a folder without permission were passed over."""
    root = tmp_path / "in"
    write(root / "a.png", root / "shut/b.png")
    os.mkfifo(root / "pipe.dcm")
    (root / "gone.nii.gz").symlink_to(tmp_path / "nowhere")
    real = os.scandir

    def refusing(folder: str | Path = ".") -> object:
        if Path(folder).name == "shut":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", refusing)  # the tests may run as root, whom nothing is refused
    said = failures(root, tmp_path / "out")
    assert said.keys() == {"gone.nii.gz", "pipe.dcm", "shut"}
    assert all(problem.startswith(str(root / name)) for name, problem in said.items())
    assert items(root, tmp_path / "out") == ["a.png"]


def test_pipes_and_broken_links_given_by_name_stop_nothing(tmp_path: Path) -> None:
    """As a shell's ``*`` gives them: a pipe held predict for ever, a broken link ended it before the first mask."""
    write(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    found = find_items(sorted(tmp_path.iterdir()), results=tmp_path / "out")
    assert [one.source.name for one in found.items] == ["a.png"]
    assert [one.source.name for one in found.failures] == ["gone.png", "pipe.png"]


def test_files_of_other_types_are_counted_but_not_results(tmp_path: Path) -> None:
    """A scan exported as NRRD was passed over without a word; tables of an earlier answer are nobody's scans."""
    write(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    for name in ("b.nrrd", "c.NRRD", "d.mha", ".hidden", "out/predictions.csv"):
        (tmp_path / name).write_bytes(b"x")
    found = find_items([tmp_path], results=tmp_path / "out")
    assert found.failures == []
    assert found.remarks == [f"{tmp_path}: left out: 3 files of other types (.nrrd, .mha)."]


def test_names_stay_as_they_are(tmp_path: Path) -> None:
    """Ids are compared in NFC; a mask is named as its scan is, byte for byte."""
    name = unicodedata.normalize("NFD", "Müller.png")
    write(tmp_path / "in" / name)
    (item,) = items_in(tmp_path / "in", tmp_path / "out", 2)
    assert isinstance(item, Item)
    assert item.output == Path(name)


@pytest.mark.parametrize(("axis", "rows_and_columns"), [(0, (6, 5)), (1, (6, 4)), (2, (5, 4))])
def test_frames_of_volumes_know_their_size_as_it_is_read(
    axis: int, rows_and_columns: tuple[int, int], tmp_path: Path
) -> None:
    """Red where room is held for other pixels than those that reading gives."""
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.diag([-1.0, 2, 3, 1])), tmp_path / "v.nii")
    (item,) = find_items([tmp_path / "v.nii"], results=tmp_path / "out", axis=axis).items
    assert [frame.size for frame in item.frames] == [rows_and_columns] * (4, 5, 6)[axis]
    assert read_image(tmp_path / "v.nii", index=0, axis=axis).shape[:2] == rows_and_columns


def test_of_a_file_and_a_link_to_it_the_file_is_answered(tmp_path: Path) -> None:
    """Whoever looks for the mask of the file found none."""
    write(tmp_path / "in/z.png")
    (tmp_path / "in/a.png").symlink_to("z.png")
    found = find_items([tmp_path / "in"], results=tmp_path / "out")
    assert [one.source.name for one in found.items] == ["z.png"]
    assert [remark for remark in found.remarks if "a.png and" in remark and "z.png are one file" in remark]


def test_a_path_that_is_not_there_stops_no_other(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    found = find_items([tmp_path / "a.png", tmp_path / "b.png"], results=tmp_path / "out")
    assert [one.source.name for one in found.items] == ["a.png"]
    assert [one.problem for one in found.failures] == [f"{tmp_path / 'b.png'}: there is no such file or folder."]
    found = find_items([tmp_path / "a.png", tmp_path / ("x" * 300)], results=tmp_path / "out")
    assert len(found.items) == len(found.failures) == 1, "a name that no disk takes"
    with pytest.raises(UserError, match=r"b\.png: there is no such file or folder"):
        find_items([tmp_path / "b.png"], results=tmp_path / "out")
