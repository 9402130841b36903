"""One rule of what counts as data: hidden names, links, what cannot be looked at, and names in several spellings."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from tskd.data import files
from tskd.data.files import find_files, id_of, is_beside, is_hidden, plain, shown
from tskd.errors import UserError

NOBODY = 65534
HIDDEN = (
    ".DS_Store", "._c00.nii.gz", ".ipynb_checkpoints", "Thumbs.db", "THUMBS.DB", "desktop.ini", "__MACOSX", "@eaDir",
    "$RECYCLE.BIN", "System Volume Information", "scan.png~", "~$notes.docx", ".~lock.list.csv#", "#scan.png#",
    "scan.png:Zone.Identifier", "lost+found", "Icon\r", "#recycle", "@Recycle", "__pycache__", ".nfs0001",
)  # fmt: skip
DATA = ("a.png", "c00_0000.nii.gz", "IM0001", "_scan.png", "~5mm.png", "#3.png", "@home.png", "thumbs.png", "mask$.tif")


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(paths: tuple[Path, ...], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


@pytest.mark.parametrize("name", HIDDEN)
def test_what_systems_and_editors_leave_behind_is_hidden(name: str) -> None:
    assert is_hidden(name)


@pytest.mark.parametrize("name", DATA)
def test_odd_names_of_data_are_not_hidden(name: str) -> None:
    """Red where a rule is so wide that it loses somebody's scan."""
    assert not is_hidden(name)


def test_hidden_folders_are_not_entered_and_only_names_below_the_folder_count(tmp_path: Path) -> None:
    root = tmp_path / ".cache" / "images"
    write(root / "a.PNG", root / ".ipynb_checkpoints/a-checkpoint.png", root / "p1/__MACOSX/._b.png", root / "p1/b.png")
    write(root / "p1/list.docx")
    found = find_files(root, is_png)
    assert names(found.files, root) == ["a.PNG", "p1/b.png"]
    assert names(found.hidden, root) == [".ipynb_checkpoints", "p1/__MACOSX"]
    assert names(found.others, root) == ["p1/list.docx"]
    assert found.problems == ()


def test_a_folder_is_read_once_whatever_links_lead_to_it(tmp_path: Path) -> None:
    """Red where links are not followed, where a loop never ends, and where a link doubles what is there already."""
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    write(root / "z/real.png", elsewhere / "far.png")
    for link, target in (("a", root / "z"), ("far", elsewhere), ("again", elsewhere), ("z/up", root)):
        (root / link).symlink_to(target, target_is_directory=True)
    (elsewhere / "self").symlink_to(elsewhere, target_is_directory=True)
    (root / "one.png").symlink_to(elsewhere / "far.png")
    found = find_files(root, is_png)
    assert names(found.files, root) == ["again/far.png", "one.png", "z/real.png"]
    assert names(found.linked_again, root) == ["a", "again/self", "far", "z/up"]
    assert found.problems == ()


def test_a_linked_root_is_read_and_missing_ones_are_empty(tmp_path: Path) -> None:
    write(tmp_path / "there/a.png", tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert names(find_files(tmp_path / "link").files, tmp_path) == ["link/a.png"]
    assert find_files(tmp_path / "absent") == files.Listing()
    assert "broken link" in dict(find_files(tmp_path / "broken").problems)[tmp_path / "broken"]
    assert "file where a folder" in dict(find_files(tmp_path / "file").problems)[tmp_path / "file"]


def test_what_is_no_file_is_named_and_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a pipe waits for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("talk.png")
        found = find_files(tmp_path, lambda path: pytest.fail(f"{path} was looked into"))
    assert {path.name: text.split(".")[0] for path, text in found.problems} == {
        "gone.png": "is a broken link: what it leads to is not there",
        "pipe.png": "is not a file but a pipe, socket or device, which cannot be read",
        "round.png": "is a link that leads round in a circle",
        "talk.png": "is not a file but a pipe, socket or device, which cannot be read",
    }
    assert found.files == ()


def test_a_folder_that_may_not_be_read_is_named_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "open/a.png", tmp_path / "shut/b.png")
    real = os.scandir

    def refusing(folder: Path) -> object:
        if Path(folder).name == "shut":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", refusing)  # the tests may run as root, whom nothing is refused
    found = find_files(tmp_path)
    assert names(found.files, tmp_path) == ["open/a.png"]
    ((path, text),) = found.problems
    assert path == tmp_path / "shut"
    assert "permission denied" in text


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """A folder of somebody who is not root, whom nothing is refused."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        (folder / "shut").chmod(0o755)
        if root:
            os.seteuid(0)
        shutil.rmtree(folder)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_folder_without_permission_ends_nothing(ordinary_user: Path, mode: int) -> None:
    """Without the right to enter, names are listed of which nothing can be known, not even whether they are links."""
    write(ordinary_user / "open.png", ordinary_user / "shut/deep/a.png")
    (ordinary_user / "shut/link").symlink_to(ordinary_user)
    (ordinary_user / "shut").chmod(mode)
    found = find_files(ordinary_user)
    assert names(found.files, ordinary_user) == ["open.png"]
    assert {path.relative_to(ordinary_user).parts[0] for path, _ in found.problems} == {"shut"}
    assert all("permission denied" in text for _, text in found.problems)


def test_what_the_question_raises_is_a_problem_of_that_file(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", tmp_path / "b.dcm")

    def odd(path: Path) -> bool:
        if path.name == "a.dcm":
            raise IndexError
        return True

    found = find_files(tmp_path, odd)
    assert names(found.files, tmp_path) == ["b.dcm"]
    assert [path.name for path, _ in found.problems] == ["a.dcm"]


def test_only_the_folder_itself_where_it_is_not_to_be_deep(tmp_path: Path) -> None:
    write(tmp_path / "a.png", tmp_path / "sub/b.png")
    found = find_files(tmp_path, deep=False)
    assert (names(found.files, tmp_path), names(found.folders, tmp_path)) == (["a.png"], ["sub"])


def test_order_is_that_of_the_names_and_not_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(*(tmp_path / name for name in ("b.png", "a/z.png", "a.png", "c/y.png")))
    expected = names(find_files(tmp_path).files, tmp_path)
    assert expected == ["a.png", "a/z.png", "b.png", "c/y.png"]

    class Backwards:
        def __init__(self, folder: Path) -> None:
            self.entries = sorted(real(folder), key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None:
            return None

    real = os.scandir
    monkeypatch.setattr(os, "scandir", Backwards)
    assert names(find_files(tmp_path).files, tmp_path) == expected


def test_ids_are_compared_in_one_spelling() -> None:
    """macOS writes two characters where Linux writes one; Latin-1 bytes from old archives are no UTF-8."""
    composed, decomposed = "Müller", unicodedata.normalize("NFD", "Müller")
    assert composed != decomposed
    assert id_of(Path("x") / f"{decomposed}.PNG", Path("x")) == id_of(Path("x") / f"{composed}.jpg", Path("x"))
    latin = os.fsdecode("Müller".encode("latin-1"))
    assert plain(latin) == "M\\xfcller"
    plain(latin).encode("utf-8")
    assert plain("\ud83d") == "\\ud83d"  # what YAML may hold


def test_what_a_terminal_would_obey_is_shown_as_text() -> None:
    assert shown("a\x1b[31mb\nc\u202egnp.d\u2066") == r"a\x1b[31mb\nc\u202egnp.d\u2066"
    assert shown("Ärzte 😀 می\u200cخواهم") == "Ärzte 😀 می\u200cخواهم"


def test_a_table_far_too_large_is_not_read(tmp_path: Path) -> None:
    """A sparse split.csv of gigabytes was read into memory until there was none."""
    (tmp_path / "split.csv").touch()
    os.truncate(tmp_path / "split.csv", 2**33)
    with pytest.raises(UserError, match=r"split\.csv: has more than 64 MB"):
        is_beside(tmp_path / "split.csv")
