"""Corrected masks become a data folder that `tskd check` accepts; nothing is overwritten and nobody is named."""

from __future__ import annotations

import csv
import errno
import os
import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from onnxruntime import RunOptions
from PIL import Image

from tests.dicoms import SECRETS, save_series
from tests.serving import as_png, client_of, from_png, picture, service_of, truth, write_bundle, zipped
from tskd.cli import main
from tskd.errors import UserError
from tskd.serve.corrections import Corrections

RAW = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("model"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")}  # fmt: skip


def test_a_folder_of_corrections_can_be_checked_and_learned_from(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "corrected"
    masks = {}
    with client_of(service_of(bundle, corrections=Corrections(out, ("lesion",)))) as client:
        for seed in range(6):
            pixels = picture(64, 72, seed)
            pixels[20:40, 10 + 7 * seed : 30 + 7 * seed] = 220
            opened = client.post("/v1/views", files={"file": ("Jane_Doe.png", as_png(pixels))}).json()
            mask = truth(pixels)
            mask[:5, : 5 + seed] = 1
            answer = client.post(f"/v1/views/{opened['view']}/corrections", content=mask.tobytes(), headers=RAW)
            assert answer.status_code == 200, answer.text
            masks[answer.json()["id"]] = (pixels, mask)
    assert len(masks) == 6
    for name, (pixels, mask) in masks.items():
        np.testing.assert_array_equal(from_png((out / f"images/{name}.png").read_bytes()), pixels)
        np.testing.assert_array_equal(from_png((out / f"masks/{name}.png").read_bytes()), 255 * mask)
    assert [path for path in out.rglob("*") if "Doe" in path.name] == []
    with pytest.raises(SystemExit, match="0"):
        main(["check", str(out), "--json"])
    assert '"usable": true' in capsys.readouterr().out


def test_slices_of_one_volume_are_one_case_and_tell_no_name(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "corrected"
    paths = save_series(tmp_path / "in", [(0, 0, z) for z in range(3)], PatientName="Doe^Jane")
    content = zipped({path.name: path.read_bytes() for path in paths})
    with client_of(service_of(bundle, corrections=Corrections(out, ("lesion",)))) as client:
        opened = client.post("/v1/views", files={"file": ("Doe.zip", content)}).json()
        for number in (0, 2):
            path = f"/v1/views/{opened['view']}/corrections?slice={number}"
            assert client.post(path, content=bytes(24), headers=RAW).status_code == 200
        shown = [from_png(client.get(f"/v1/views/{opened['view']}/image?slice={n}").content) for n in (0, 2)]
    with (out / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["case"] for row in rows}) == 1
    assert len(rows) == 2
    for row, expected in zip(rows, shown, strict=True):
        np.testing.assert_array_equal(from_png((out / f"images/{row['id']}.png").read_bytes()), expected)
    everything = b"".join(files(out).values()) + "".join(files(out)).encode()
    assert [word for word in SECRETS if word.encode() in everything] == []


def test_an_earlier_mask_is_kept_and_the_same_one_is_no_change(tmp_path: Path) -> None:
    folder = Corrections(tmp_path / "c", ("lesion",))
    pixels = picture()
    first, second = truth(pixels), np.zeros((24, 30), np.uint8)
    assert not folder.save(pixels, first, case="a").replaced
    before = files(folder.root)
    assert not folder.save(pixels, first, case="a").replaced
    assert files(folder.root) == before
    saved = [folder.save(pixels, mask, case="a") for mask in (second, first)]
    assert [one.replaced for one in saved] == [True, True]
    name = saved[0].id
    now = files(folder.root)
    assert now.keys() - before.keys() == {f"earlier_masks/{name}.1.png", f"earlier_masks/{name}.2.png"}
    np.testing.assert_array_equal(from_png(now[f"earlier_masks/{name}.1.png"]), 255 * first)
    np.testing.assert_array_equal(from_png(now[f"earlier_masks/{name}.2.png"]), 255 * second)
    np.testing.assert_array_equal(from_png(now[f"masks/{name}.png"]), 255 * first)
    assert now["split.csv"].count(name.encode()) == 1


def test_corrections_join_a_data_folder_without_changing_what_is_there(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number in range(4):
        pixels = picture(64, 72, number)
        Image.fromarray(pixels).save(root / f"images/scan{number}.png")
        if number:
            Image.fromarray(255 * truth(pixels)).save(root / f"masks/scan{number}.png")
    (root / "dataset.yaml").write_text("name: mine\nclasses: [lesion]\n")
    (root / "split.csv").write_text("id,case,split\nscan1,p1,\nscan2,p2,\nscan3,p3,")
    before = files(root)
    folder = Corrections(root, ("lesion",))
    folder.save(picture(64, 72, 9), truth(picture(64, 72, 9)), case="new")
    own = folder.save(picture(64, 72, 0), truth(picture(64, 72, 0)), case="x", source=root / "images/scan0.png")
    now = files(root)
    assert own.id == "scan0"
    assert {name for name in before if now[name] != before[name]} == {"split.csv"}
    assert now["split.csv"].startswith(before["split.csv"])
    assert len(now["split.csv"].splitlines()) == 5
    assert (len(now) - len(before), "masks/scan0.png" in now) == (3, True)
    with pytest.raises(SystemExit, match="0"):
        main(["check", str(root), "--json"])
    assert '"usable": true' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files_there", "said"),
    [({"dataset.yaml": "classes: [cyst]\n"}, "its classes are cyst, the model's lesion"),
     ({"dataset.yaml": "classes: [lesion]\nwindow: [0, 9]\n"}, "states labels or a window"),
     ({"images/a.png": "x"}, "names no classes"),
     ({"split.csv": "id,split\n"}, "lacks a column"),
     ({"split.csv": "id,split,case\nJos\xe9,train,a\n"}, r"split\.csv: is not a CSV file in UTF-8")],
)  # fmt: skip
def test_a_folder_that_corrections_do_not_fit_is_refused(
    files_there: dict[str, str], said: str, tmp_path: Path
) -> None:
    for name, text in files_there.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=said):
        Corrections(tmp_path, ("lesion",))


def test_wrong_masks_and_a_server_without_a_folder_save_nothing(bundle: Path, tmp_path: Path) -> None:
    upload = {"file": ("a.png", as_png(picture()))}
    with client_of(service_of(bundle, corrections=Corrections(tmp_path / "c", ("lesion",)))) as client:
        path = f"/v1/views/{client.post('/v1/views', files=upload).json()['view']}/corrections"
        for wrong in (b"", bytes(719), bytes(721), b"\x02" + bytes(719)):
            assert client.post(path, content=wrong, headers=RAW).status_code == 422
        assert client.post(f"{path}?slice=1", content=bytes(720), headers=RAW).status_code == 404
    assert not (tmp_path / "c").exists()
    with client_of(service_of(bundle)) as client:
        path = f"/v1/views/{client.post('/v1/views', files=upload).json()['view']}/corrections"
        answer = client.post(path, content=bytes(720), headers=RAW)
        assert (answer.status_code, "--corrections" in answer.json()["error"]) == (409, True)


def save_one(bundle: Path, corrections: Corrections, monkeypatch: pytest.MonkeyPatch, refused: int) -> tuple[int, str]:
    """Return status and words of a correction while the disk has no room for one of its files, counted from 0."""
    written = iter(range(100))

    def full(_: int) -> None:
        if next(written) == refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with client_of(service_of(bundle, corrections=corrections)) as client, monkeypatch.context() as patch:
        view = client.post("/v1/views", files={"file": ("Doe.png", as_png(picture()))}).json()["view"]
        patch.setattr(os, "fsync", full)
        answer = client.post(f"/v1/views/{view}/corrections", content=truth(picture()).tobytes(), headers=RAW)
    return answer.status_code, answer.text


@pytest.mark.parametrize("refused", range(4))
def test_a_full_disk_is_told_as_that_and_leaves_no_half_of_a_correction(
    refused: int, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red where it is called a defect of the server, or an image lies there without its mask and its line."""
    folder = Corrections(tmp_path / "c", ("lesion",))
    status, told = save_one(bundle, folder, monkeypatch, refused)
    assert (status, "No space left on device" in told, str(tmp_path) in told) == (507, True, False), told
    assert files(folder.root) == {}
    assert [path.name for path in folder.root.rglob(".*")] == [".tskd-corrections.lock"]
    assert capsys.readouterr() == ("", "")
    assert save_one(bundle, folder, monkeypatch, 99)[0] == 200
    assert len(files(folder.root)) == 4


def test_files_that_took_their_places_go_where_a_later_one_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Corrections(tmp_path / "c", ("lesion",))
    really = Path.replace

    def held(path: Path, target: Path) -> Path:
        if target.name == "split.csv":
            raise PermissionError(errno.EACCES, "Held by another program", str(path), None, str(target))
        return really(path, target)

    monkeypatch.setattr(Path, "replace", held)
    with pytest.raises(PermissionError):
        folder.save(picture(), truth(picture()), case="a")
    assert files(folder.root) == {}


def test_a_replaced_mask_is_kept_where_the_disk_has_no_room_for_the_new_one(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Corrections(tmp_path / "c", ("lesion",))
    folder.save(picture(), np.zeros((24, 30), np.uint8), case="a")
    before = files(folder.root)
    assert save_one(bundle, folder, monkeypatch, 1)[0] == 507
    assert files(folder.root) == before


@pytest.mark.parametrize(
    ("place", "content", "status", "said"),
    [("images", b"x", 422, "is in its way"), ("split.csv", b"id,split,case\nJos\xe9,train,a\n", 422, "in UTF-8"),
     ("split.csv", b"id;split;case\n", 422, "lacks a column")],
)  # fmt: skip
def test_a_folder_that_came_to_be_unfit_is_told_and_left_as_it_is(
    place: str, content: bytes, status: int, said: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Corrections(tmp_path / "c", ("lesion",))
    folder.root.mkdir()
    (folder.root / place).write_bytes(content)
    told = save_one(bundle, folder, monkeypatch, 99)
    assert (told[0], said in told[1], str(tmp_path) in told[1]) == (status, True, False), told
    assert files(folder.root) == {place: content}


def test_an_image_that_left_the_pool_while_it_was_open_is_told(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    Image.fromarray(picture()).save(tmp_path / "pool/a.png")
    folder = Corrections(tmp_path / "c", ("lesion",))
    with client_of(service_of(bundle, corrections=folder, pool_folder=tmp_path / "pool")) as client:
        view = client.post("/v1/pool/0").json()["view"]
        (tmp_path / "pool/a.png").unlink()
        answer = client.post(f"/v1/views/{view}/corrections", content=bytes(720), headers=RAW)
    assert (answer.status_code, "in the pool" in answer.text) == (422, True)
    assert files(tmp_path / "c") == {}


def test_an_image_of_the_pool_is_windowed_once_and_keeps_its_spacing(tmp_path: Path) -> None:
    """What is shown and saved is what the network saw: red where the window is applied to its own result."""
    (tmp_path / "pool").mkdir()
    values = np.linspace(-400, 500, 40 * 30 * 2).reshape(40, 30, 2).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([0.5, 0.5, 3, 1])), tmp_path / "pool/ct.nii")
    sent = (tmp_path / "pool/ct.nii").read_bytes()
    folder = Corrections(tmp_path / "c", ("lesion",))
    model = write_bundle(tmp_path / "model", window=(-160, 240))
    with client_of(service_of(model, corrections=folder, pool_folder=tmp_path / "pool")) as client:
        until_scored(client)
        uploaded = client.post("/v1/views", files={"file": ("ct.nii", sent)}).json()
        opened = client.post("/v1/pool/1").json()
        shown = [
            from_png(client.get(f"/v1/views/{one}").content)
            for one in (f"{uploaded['view']}/image?slice=1", f"{opened['view']}/image")
        ]
        np.testing.assert_array_equal(shown[0], shown[1])
        counts = [one["found"]["slices"][place]["pixels"] for one, place in ((uploaded, 1), (opened, 0))]
        assert counts[0] == counts[1]
        assert opened["found"]["spacing_mm"][:2] == [0.5, 0.5]
        assert opened["found"]["classes"][0]["mm2"] == pytest.approx(0.25 * counts[1][0])
        mask = client.get(f"/v1/views/{opened['view']}/mask").content
        saved = client.post(f"/v1/views/{opened['view']}/corrections", content=mask, headers=RAW).json()["id"]
        assert np.ptp(from_png((tmp_path / f"c/images/{saved}.png").read_bytes())) == 255
    again = service_of(model, corrections=folder, pool_folder=tmp_path / "pool")
    with client_of(again) as client:
        assert [one["name"] for one in until_scored(client)] == ["ct, slice 0"]


def test_what_the_model_doubts_most_comes_first_and_leaves_when_it_is_labelled(bundle: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for name, bright in {"sure": 250, "unsure": 140, "between": 190}.items():
        pixels = np.zeros((40, 40, 3), np.uint8)
        pixels[10:30, 10:30] = bright
        Image.fromarray(pixels).save(pool / f"{name}.png")
    (pool / "broken.png").write_bytes(b"no image")
    values = np.full((40, 40, 2), 128, np.uint8)
    values[..., 1] = 255
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), pool / "volume.nii")
    service = service_of(bundle, corrections=Corrections(tmp_path / "c", ("lesion",)), pool_folder=pool)
    with client_of(service) as client:
        listed = until_scored(client)
        assert [one["name"] for one in listed] == ["volume, slice 0", "unsure", "between", "sure", "volume, slice 1"]
        assert [one["doubt"] for one in listed] == sorted((one["doubt"] for one in listed), reverse=True)
        opened = client.post(f"/v1/pool/{listed[1]['number']}").json()
        mask = client.get(f"/v1/views/{opened['view']}/mask").content
        assert client.post(f"/v1/views/{opened['view']}/corrections", content=mask, headers=RAW).status_code == 200
        opened = client.post(f"/v1/pool/{listed[0]['number']}").json()
        mask = client.get(f"/v1/views/{opened['view']}/mask").content
        assert client.post(f"/v1/views/{opened['view']}/corrections", content=mask, headers=RAW).status_code == 200
        assert [one["name"] for one in client.get("/v1/pool").json()["next"]] == ["between", "sure", "volume, slice 1"]
        assert client.post("/v1/pool/99").status_code == 404
    again = service_of(bundle, corrections=Corrections(tmp_path / "c", ("lesion",)), pool_folder=pool)
    with client_of(again) as client:
        assert [one["name"] for one in until_scored(client)] == ["between", "sure", "volume, slice 1"]


def until_scored(client: object) -> list[dict[str, object]]:
    for _ in range(1000):
        told = client.get("/v1/pool").json()  # type: ignore[attr-defined]
        if not told["left"]:
            return list(told["next"])
        threading.Event().wait(0.01)
    raise AssertionError("the pool is never done")


def test_stopping_ends_the_network_in_the_middle_of_an_image(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python aborts where it ends while a thread is inside the network."""
    (tmp_path / "pool").mkdir()
    Image.fromarray(picture()).save(tmp_path / "pool/a.png")
    folder = Corrections(tmp_path / "corrected", ("lesion",))
    service = service_of(bundle, corrections=folder, pool_folder=tmp_path / "pool")
    assert service.pool is not None
    begun = threading.Event()

    def endless(_: np.ndarray, options: RunOptions) -> None:
        begun.set()
        while not options.terminate:
            time.sleep(0.01)
        raise UserError("ended")

    monkeypatch.setattr(service.segmenter, "ask", endless)
    service.pool.start()
    assert begun.wait(20)
    service.pool.stop()
    assert service.pool.work is not None
    assert not service.pool.work.is_alive()
