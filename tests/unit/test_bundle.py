"""A bundle is used only as it was exported, whole, and replaced only by a whole one."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tskd.data.intensity import IntensityWindow
from tskd.deploy.bundle import SUMS, Bundle, open_bundle, publish, write_sums
from tskd.errors import UserError, refused_by_system


def write_bundle(folder: Path, text: str = "network") -> Path:
    folder.mkdir(parents=True)
    description = {"classes": ["cyst", "duct"], "input": {"window": [-160, 240]}}
    (folder / "model.json").write_text(json.dumps(description))
    (folder / "model.onnx").write_text(text)
    (folder / "MODEL_CARD.md").write_text("card")
    (folder / "manifest.json").write_text("case names and places of this machine")
    write_sums(folder)
    return folder


@pytest.mark.parametrize("place", [".", "model", "model/model.onnx"])
def test_found_as_folder_as_run_and_as_file(place: str, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "model")
    bundle = open_bundle(tmp_path / place)
    assert bundle == Bundle(folder)
    assert bundle.classes == ("cyst", "duct")
    assert bundle.window == IntensityWindow(-160, 240)


@pytest.mark.parametrize("name", ["model.json", "model.onnx", "MODEL_CARD.md"])
def test_a_changed_or_missing_file_is_named(name: str, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "model")
    (folder / name).write_text("changed")
    with pytest.raises(UserError, match=rf"{name} is damaged or was changed"):
        open_bundle(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "lines", ["", "no list at all\n", f"{'0' * 64}  ../outside\n", f"{'0' * 64}  model.json\n"], ids=str
)
def test_a_list_that_proves_nothing_is_refused(lines: str, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "model")
    (folder / SUMS).write_text(lines)
    with pytest.raises(UserError, match="is damaged: it must list"):
        open_bundle(folder)


def test_a_file_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    """``sha256sum`` takes both lines, and one of them may be of another file."""
    folder = write_bundle(tmp_path / "model")
    with (folder / SUMS).open("a") as file:
        file.write(f"{'0' * 64}  model.onnx\n")
    with pytest.raises(UserError, match="it lists a file twice"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"classes": ["a"]',
        '{"a": ' * 100_000,
        '{"classes": ["a"]}',
        '{"classes": [], "input": {"window": null}}',
        '{"classes": "cyst", "input": {"window": null}}',
        '{"classes": ["a", "a"], "input": {"window": null}}',
        '{"classes": ["a", 1], "input": {"window": null}}',
        '{"classes": [""], "input": {"window": null}}',
        json.dumps({"classes": [str(n) for n in range(300)], "input": {"window": None}}),
        '{"classes": ["a"], "input": 3}',
        '{"classes": ["a"], "input": {"window": 7}}',
        '{"classes": ["a"], "input": {"window": [1]}}',
        '{"classes": ["a"], "input": {"window": [5, 5]}}',
        '{"classes": ["a"], "input": {"window": [NaN, 1]}}',
        '{"classes": ["a"], "input": {"window": ["0", "1"]}}',
        '{"classes": ["a"], "input": {"window": null, "axis": 3}}',
        '{"classes": ["a"], "input": {"window": null, "axis": "2"}}',
        '{"classes": ["a"], "input": {"window": null, "axis": true}}',
        '{"classes": ["\\ud800"], "input": {"window": null}}',
    ],
    ids=range(21),
)
def test_a_description_that_is_none_is_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "model")
    (folder / "model.json").write_text(text)
    write_sums(folder)
    with pytest.raises(UserError, match="is not the description of a bundle") as caught:
        open_bundle(folder)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_a_network_that_was_added_later_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "model")
    (folder / "other.onnx").write_text("foreign")
    with pytest.raises(UserError, match="not part of the bundle"):
        open_bundle(folder / "other.onnx")


@pytest.mark.parametrize("name", ["weights.bin", "model.pkl", "code", "model.onnx.data"])
def test_what_was_put_beside_the_listed_files_is_named(name: str, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "model")
    (folder / name).mkdir() if name == "code" else (folder / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"{name} is not listed in SHA256SUMS.*Move it elsewhere"):
        open_bundle(folder)


def test_what_file_managers_leave_does_not_stop_a_clinic(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "model")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._model.onnx"):
        (folder / name).write_bytes(b"x")
    assert open_bundle(folder).classes == ("cyst", "duct")


def test_a_pickle_that_is_listed_is_not_executed(tmp_path: Path) -> None:
    """Red where weights beside the network are loaded by whoever predicts."""
    folder = write_bundle(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    write_sums(folder)
    assert open_bundle(folder).classes == ("cyst", "duct")
    with pytest.raises(UserError):
        open_bundle(folder).session()
    assert not Path("executed").exists()


def test_no_bundle_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no bundle in it"):
        open_bundle(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        open_bundle(tmp_path / "nowhere")


def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "model")
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, check=True, capture_output=True)


def test_publish_ships_the_listed_files_alone(tmp_path: Path) -> None:
    place = tmp_path / "out" / "model"
    publish(write_bundle(tmp_path / "export"), place)
    assert sorted(file.name for file in place.iterdir()) == ["MODEL_CARD.md", SUMS, "model.json", "model.onnx"]
    assert list(place.parent.iterdir()) == [place]


def test_publish_keeps_the_old_bundle_until_the_new_one_is_whole(tmp_path: Path) -> None:
    place = tmp_path / "model"
    publish(write_bundle(tmp_path / "first", "first"), place)
    damaged = write_bundle(tmp_path / "second", "second")
    (damaged / "model.onnx").write_text("torn")
    with pytest.raises(UserError, match=r"model\.onnx is damaged"):
        publish(damaged, place)
    assert (open_bundle(place).folder / "model.onnx").read_text() == "first"
    publish(write_bundle(tmp_path / "third", "third"), place)
    assert (open_bundle(place).folder / "model.onnx").read_text() == "third"
    assert not list(tmp_path.glob(".model.old*"))


@pytest.mark.parametrize("copied", [0, 1, 3])
def test_a_full_disk_leaves_the_old_bundle_and_nothing_hidden(
    copied: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-copied folder stayed beside the bundle and kept the disk full."""
    place = tmp_path / "run" / "model"
    publish(write_bundle(tmp_path / "first", "first"), place)
    done: list[str] = []
    copy = shutil.copyfile

    def full(source: Path, target: Path) -> None:
        if len(done) == copied:
            raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))
        done.append(target.name)
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space") as caught:
        publish(write_bundle(tmp_path / "second", "second"), place)
    assert [path.name for path in place.parent.iterdir()] == ["model"]
    assert open_bundle(place).folder == place
    assert (place / "model.onnx").read_text() == "first"
    assert refused_by_system(caught.value).startswith(str(tmp_path / "run")), "the full disk is that of the copy"
