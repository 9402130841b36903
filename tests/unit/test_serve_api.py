"""The HTTP interface: right answers in each form, a sentence for whatever is wrong, and nothing left behind."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tempfile
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.dicoms import SECRETS, STUDY, save, save_series
from tests.serving import as_png, client_of, from_png, picture, service_of, truth, write_bundle, zipped
from tskd.data.phantoms.write import FAMILIES, draw_phantom
from tskd.deploy.bundle import open_bundle
from tskd.deploy.card import card_html
from tskd.deploy.predict import predict_paths
from tskd.serve.app import EXAMPLES
from tskd.serve.limits import Limits, Refused
from tskd.serve.segment import NIFTI, PNG, SEG
from tskd.serve.views import View

SMALL = Limits(upload=400_000, unpacked=300_000, pixels=40_000, slices=6, seconds=20)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[TestClient]:
    with client_of(service_of(bundle, limits=SMALL)) as client:
        yield client


def send(client: TestClient, content: bytes, name: str = "a.png", accept: str = "application/json", **more: Any) -> Any:
    return client.post("/v1/segment", files={"file": (name, content)}, headers={"accept": accept, **more})


def series(folder: Path, **tags: object) -> dict[str, bytes]:
    """Return the files of a CT series of three slices, by name."""
    paths = save_series(folder, [(0, 0, 2 * z) for z in range(3)], **{**STUDY, **tags})
    return {path.name: path.read_bytes() for path in paths}


# --- right answers ---


def test_a_picture_is_answered_with_what_predict_writes(client: TestClient, bundle: Path, tmp_path: Path) -> None:
    pixels = picture()
    mask = send(client, as_png(pixels), accept=PNG)
    assert (mask.status_code, mask.headers["content-type"]) == (200, PNG)
    (tmp_path / "a.png").write_bytes(as_png(pixels))
    predict_paths(open_bundle(bundle), [tmp_path / "a.png"], tmp_path / "out")
    assert mask.content == (tmp_path / "out/a.png").read_bytes()
    np.testing.assert_array_equal(from_png(mask.content), truth(pixels))
    found = send(client, as_png(pixels)).json()
    assert found["classes"] == [
        {"index": 1, "name": "lesion", "pixels": int(truth(pixels).sum()), "mm2": None, "ml": None}
    ]
    assert (found["height"], found["width"], found["kind"]) == (24, 30, "image")
    assert found["confidence_is_calibrated"] is False


@pytest.mark.parametrize("ending", ["jpg", "tif", "bmp", "webp", "gif"])
def test_pictures_of_all_types_are_read_as_predict_reads_them(
    ending: str, client: TestClient, bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(picture()).save(path)
    predict_paths(open_bundle(bundle), [path], tmp_path / "out")
    assert send(client, path.read_bytes(), path.name, PNG).content == (tmp_path / "out/a.png").read_bytes()


@pytest.mark.parametrize("packed", [True, False])
def test_a_volume_is_answered_on_its_own_grid_and_in_millilitres(
    packed: bool, client: TestClient, bundle: Path, tmp_path: Path
) -> None:
    values = np.stack([picture(24, 30, seed)[..., 0] for seed in range(4)], axis=-1)
    path = tmp_path / f"scan.nii{'.gz' * packed}"
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-2.0, -3, 5, 1])), path)
    predict_paths(open_bundle(bundle), [path], tmp_path / "out")
    answer = send(client, path.read_bytes(), path.name, NIFTI)
    assert gzip.decompress(answer.content) == gzip.decompress((tmp_path / "out/scan.nii.gz").read_bytes())
    found = send(client, path.read_bytes(), path.name).json()
    assert found["classes"][0]["ml"] == pytest.approx((values > 127.5).sum() * 2 * 3 * 5 / 1000, rel=1e-5)
    assert [one["pixels"][0] for one in found["slices"]] == [int((values[..., k] > 127).sum()) for k in range(4)]
    assert send(client, path.read_bytes(), path.name, PNG).status_code == 406


def test_frames_that_form_no_volume_are_told_as_frames(client: TestClient, tmp_path: Path) -> None:
    """It is one file, and whoever sent it was told to send one."""
    path = save(np.zeros((3, 12, 10), np.uint8), tmp_path / "us.dcm", Modality="US")
    answer = send(client, path.read_bytes(), name="us.dcm")
    assert answer.status_code == 422
    assert "The file holds 3 frames that form no volume" in answer.text
    two = series(tmp_path / "a", SeriesInstanceUID="1.2.1") | {
        f"b{name}": content for name, content in series(tmp_path / "b", SeriesInstanceUID="1.2.2").items()
    }
    assert "The upload holds 2 images or volumes" in send(client, zipped(two), name="both.zip").text


def test_volumes_of_one_file_are_not_added_up(client: TestClient, tmp_path: Path) -> None:
    """Frames of a beating heart: twice the organ is no organ."""
    values = np.stack([picture()[..., 0]] * 2, axis=-1)[:, :, None].astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2, 3, 5, 1])), tmp_path / "cine.nii")
    found = send(client, (tmp_path / "cine.nii").read_bytes(), name="cine.nii").json()
    assert len(found["slices"]) == 2
    assert [one["ml"] for one in found["classes"]] == [None]
    assert any("2 volumes" in remark for remark in found["remarks"])


@pytest.mark.parametrize("name", ["a.nii", "a.NII.GZ"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("in_a_zip", [True, False])
def test_a_volume_is_read_whatever_its_name_says_of_packing(
    in_a_zip: bool, packed: bool, name: str, client: TestClient, bundle: Path, tmp_path: Path
) -> None:
    """As ``tskd predict`` reads it, and within the limits: what is packed is unpacked here and not by the reader."""
    content = nibabel.Nifti1Image(picture(24, 30)[..., :2], np.eye(4)).to_bytes()
    content = gzip.compress(content) if packed else content
    (tmp_path / name).write_bytes(content)
    predict_paths(open_bundle(bundle), [tmp_path / name], tmp_path / "out")
    sent = (zipped({f"scans/{name}": content}), "a.zip") if in_a_zip else (content, name)
    answer = send(client, *sent, NIFTI)
    assert answer.status_code == 200, answer.text
    assert gzip.decompress(answer.content) == gzip.decompress((tmp_path / "out/a.nii.gz").read_bytes())


def test_a_zipped_series_is_answered_as_volume_and_as_segmentation(
    client: TestClient, bundle: Path, tmp_path: Path
) -> None:
    files = series(tmp_path / "study", PatientName="Doe^Jane")
    content = zipped({f"study/{name}": data for name, data in files.items()} | {"study/readme.txt": b"no slice"})
    predict_paths(open_bundle(bundle), [tmp_path / "study"], tmp_path / "out")
    volume = gzip.decompress(send(client, content, "study.zip", NIFTI).content)
    assert volume == gzip.decompress((tmp_path / "out/study.nii.gz").read_bytes())
    answer = send(client, content, "study.zip", SEG)
    assert (answer.status_code, answer.headers["content-type"]) == (200, SEG), answer.text
    segmented = pydicom.dcmread(io.BytesIO(answer.content))
    np.testing.assert_array_equal(segmented.pixel_array, pydicom.dcmread(tmp_path / "out/study.seg.dcm").pixel_array)
    expected = np.asarray(nibabel.Nifti1Image.from_bytes(volume).dataobj)
    assert segmented.pixel_array.sum() == expected.sum() > 0
    found = send(client, content, "study.zip").json()
    assert found["kind"] == "series"
    assert found["spacing_mm"] == [0.5, 0.8, 2]


def test_a_compressed_dicom_file_is_decoded_from_memory(client: TestClient, tmp_path: Path) -> None:
    pixels = picture(72, 64)[..., 0].copy()
    plain = save(pixels, tmp_path / "plain.dcm")
    packed = save(pixels, tmp_path / "packed.dcm", compress=pydicom.uid.JPEG2000Lossless)
    answers = [send(client, path.read_bytes(), "x.dcm", PNG) for path in (plain, packed)]
    assert answers[0].status_code == 200, answers[0].text
    assert answers[0].content == answers[1].content


@pytest.mark.parametrize(
    ("accept", "form"),
    [("*/*", "application/json"), ("", "application/json"), ("image/*", PNG),
     ("image/png;q=0.5, application/json;q=0.4", PNG),
     ("text/html, application/xhtml+xml, */*;q=0.1", "application/json"), ("application/json;q=0, */*;q=0.1", PNG)],
)  # fmt: skip
def test_the_form_goes_by_what_the_client_ranks_highest(accept: str, form: str, client: TestClient) -> None:
    answer = send(client, as_png(picture()), accept=accept)
    assert (answer.status_code, answer.headers["content-type"]) == (200, form)


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "audio/*", NIFTI, SEG])
def test_a_form_that_there_is_none_of_is_refused(accept: str, client: TestClient) -> None:
    assert send(client, as_png(picture()), accept=accept).status_code == 406


@pytest.mark.parametrize("name", ["", ".", "./", "././"])
def test_a_name_without_a_part_in_a_zip_is_passed_over(name: str, client: TestClient) -> None:
    members = [zipfile.ZipInfo(one) for one in (name, "a.png")]
    answers = [send(client, members_zipped(members[:count]), "a.zip") for count in (1, 2)]
    assert [one.status_code for one in answers] == [422, 200], answers[0].text
    assert answers[0].json()["error"] == "There is no image in the ZIP file."


def members_zipped(members: list[zipfile.ZipInfo]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for one in members:
            archive.writestr(one, as_png(picture()))
    return content.getvalue()


# --- wrong uploads ---


def bomb_png() -> bytes:
    """A few bytes that state 60000 x 60000 pixels."""
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def big_nifti(shape: tuple[int, ...]) -> bytes:
    return gzip.compress(nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)).to_bytes())


WRONG = {
    "empty": (b"", "a.png", 400),
    "no image": (b"hello", "a.png", 415),
    "a program": (b"\x7fELF" + bytes(99), "a.exe", 415),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a.png", 415),
    "cut short": (as_png(picture())[:200], "a.png", 422),
    "cut tiff": (b"II*\0\x08\0\0\0", "a.tif", 422),
    "not dicom": (b"x" * 300, "a.dcm", 422),
    "not nifti": (b"x" * 400, "a.nii", 422),
    "damaged gzip": (b"\x1f\x8b" + bytes(50), "a.nii.gz", 422),
    "gzip of something": (gzip.compress(b"x"), "a.gz", 415),
    "damaged zip": (b"PK\x03\x04" + bytes(50), "a.zip", 422),
    "empty zip": (zipped({}), "a.zip", 422),
    "zip of text": (zipped({"a.txt": b"x"}), "a.zip", 422),
    "two in a zip": (zipped({"a.png": as_png(picture()), "b.png": as_png(picture())}), "a.zip", 422),
    "path in the name": (as_png(picture()), "../a.png", 400),
    "windows path": (as_png(picture()), "..\\scans\\a.png", 400),
    "dots": (as_png(picture()), "..", 400),
    "path in a zip": (zipped({"../../etc/a.png": as_png(picture())}), "a.zip", 400),
    "root in a zip": (zipped({"/etc/a.png": as_png(picture())}), "a.zip", 400),
    "bomb of pixels": (bomb_png(), "a.png", 422),
    "too many pixels": (as_png(np.zeros((210, 210), np.uint8)), "a.png", 413),
    "bomb in a zip": (zipped({"a.png": bytes(400_000)}), "a.zip", 413),
    "many in a zip": (zipped({f"{n}.dcm": b"x" for n in range(200)}), "a.zip", 413),
    "bomb of gzip": (big_nifti((100, 100, 40)), "a.nii.gz", 413),
    "bombs of gzip in a zip": (zipped({f"{n}.nii.gz": big_nifti((100, 100, 20)) for n in "ab"}), "a.zip", 413),
    "bomb of gzip beside a picture": (
        zipped({"a.nii": big_nifti((100, 100, 29)), "b.png": as_png(picture(200, 200))}),
        "a.zip",
        413,
    ),
    "gzip of gzip": (gzip.compress(big_nifti((4, 4, 4))), "a.nii.gz", 422),
    "gzip of gzip in a zip": (zipped({"a.nii.gz": gzip.compress(big_nifti((4, 4, 4)))}), "a.zip", 422),
    "too many slices": (big_nifti((4, 4, 7)), "a.nii.gz", 413),
    "too many bytes": (bytes(500_000), "a.png", 413),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_upload_gets_one_sentence_and_leaves_nothing(
    case: str, client: TestClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, name, status = WRONG[case]
    monkeypatch.setattr(tempfile, "_RandomNameSequence", _forbidden)
    answer = send(client, content, name)
    assert answer.status_code == status, answer.text
    why = answer.json()["error"]
    assert why[0].isupper()
    assert why.endswith(".")
    assert not any(part in why for part in ("in-memory", "/etc", "Traceback", "\n"))
    assert capsys.readouterr() == ("", "")


def test_a_zip_that_states_too_small_a_size_takes_no_more_memory_than_it_states(bundle: Path) -> None:
    """64 MB of zeros, called one kilobyte."""
    content = bytearray(zipped({"a.png": as_png(picture())[:60] + bytes(2**26)}))
    for signature, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(signature) + place, 1024)
    tracemalloc.start()
    try:
        with client_of(service_of(bundle)) as client:
            answer = send(client, bytes(content), "a.zip")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status_code, most < 2**24) == (422, True), (answer.text, most)


def _forbidden() -> Iterator[str]:
    raise AssertionError("a temporary file was asked for")


def test_no_upload_reaches_the_disk(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a megabyte: starlette's own parser would put them into a temporary file."""
    pixels = np.random.default_rng(0).integers(0, 256, (640, 640, 3), dtype=np.uint8)
    monkeypatch.setattr(tempfile, "TemporaryFile", _forbidden)
    with client_of(service_of(bundle)) as client:
        answer = client.post("/v1/segment", files={"file": ("a.png", as_png(pixels))}, headers={"accept": PNG})
    np.testing.assert_array_equal(from_png(answer.content), truth(pixels))


def test_bodies_that_are_no_upload_are_refused(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    assert client.post("/v1/segment", content=b"x", headers={"content-type": "image/png"}).status_code == 415
    assert client.post("/v1/segment", content=b"x", headers={"content-type": "multipart/form-data"}).status_code == 400
    boundary = {"content-type": "multipart/form-data; boundary=b"}
    assert client.post("/v1/segment", content=b"--b\r\nnonsense", headers=boundary).status_code == 400
    assert client.post("/v1/segment", data={"file": "text"}, files={"other": ("a.png", b"x")}).status_code == 400
    odd = b'--b\r\nContent-Disposition: form-data; name="file"\r\nX[ \xc3: Doe\r\n\r\nx\r\n--b--\r\n'
    assert client.post("/v1/segment", content=odd, headers=boundary).status_code == 400
    assert [one.name for one in caplog.records if not one.name.startswith("http")] == []
    two = [("file", ("a.png", b"x")), ("file", ("b.png", b"x"))]
    assert client.post("/v1/segment", files=two).status_code == 400


def test_bytes_are_counted_where_no_length_is_stated(client: TestClient) -> None:
    def parts() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        for _ in range(10):
            yield bytes(100_000)

    answer = client.post("/v1/segment", content=parts(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 413


def test_nothing_of_a_patient_is_answered_or_logged(
    client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = series(tmp_path / "in", PatientName="Doe^Jane", PatientID="SECRET-7")
    (first, *others) = files.values()
    answers = [
        send(client, zipped({f"Doe/{n}.dcm": one for n, one in enumerate([first[:-20], *others])}), "SECRET-7.zip"),
        send(client, zipped({f"Doe/Jane{n}.dcm": one for n, one in enumerate(files.values())}), "Doe.zip"),
        send(client, first[:300], "Doe_Jane.dcm"),
    ]  # fmt: skip
    assert [one.status_code for one in answers] == [422, 200, 422]
    told = (
        "".join(one.text + str(one.headers) for one in answers) + client.get("/metrics").text + str(capsys.readouterr())
    )
    assert [word for word in (*SECRETS, "in-memory") if word in told] == []


# --- load ---


def test_work_that_takes_too_long_is_ended(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(bundle, limits=Limits(seconds=0.2))
    with client_of(service) as client:
        really = service.segmenter.read_by

        def slow(*how: Any) -> np.ndarray:
            threading.Event().wait(0.5)
            return really(*how)

        monkeypatch.setattr(service.segmenter, "read_by", slow)
        answer = send(client, as_png(picture()))
    assert answer.status_code == 504
    assert "longer than 0.2 s" in answer.json()["error"]


def test_a_full_queue_tells_when_to_come_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two places, both taken; a third is turned away before its bytes are read, and welcome when one is free."""
    service = service_of(bundle, limits=Limits(at_once=1, waiting=1))
    begun, go = threading.Semaphore(0), threading.Event()
    really = service.segmenter.read_by

    def held(*how: Any) -> np.ndarray:
        begun.release()
        go.wait(20)
        return really(*how)

    monkeypatch.setattr(service.segmenter, "read_by", held)
    statuses: list[int] = []
    with client_of(service) as client:
        threads = [
            threading.Thread(target=lambda: statuses.append(send(client, as_png(picture())).status_code)) for _ in "ab"
        ]
        for thread in threads:
            thread.start()
        assert begun.acquire(timeout=20)
        for _ in range(1000):
            if service.gate.admitted == 2:
                break
            threading.Event().wait(0.01)
        refused = send(client, as_png(picture()))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert client.get("/healthz").status_code == 200, "health is told also where the queue is full"
        go.set()
        for thread in threads:
            thread.join()
        assert send(client, as_png(picture())).status_code == 200
    assert statuses == [200, 200]
    assert service.gate.admitted == 0


def test_a_defect_is_told_without_what_it_says(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = service_of(bundle)

    def broken(*_: object) -> None:
        raise KeyError("Doe^Jane")

    monkeypatch.setattr(service.segmenter, "segment", broken)
    with client_of(service) as client:
        answer = send(client, as_png(picture()))
        assert answer.status_code == 500
        assert "defect" in answer.json()["error"]
        assert client.get("/healthz").status_code == 200
    said = capsys.readouterr().err
    assert "KeyError in test_serve_api.py" in said
    assert "Doe" not in said


# --- the page's own questions ---


def test_an_open_file_shows_slices_by_any_window_until_it_is_closed(bundle: Path) -> None:
    values = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3) * 10
    content = nibabel.Nifti1Image(values, np.diag([-1.0, -1, 1, 1])).to_bytes()
    service = service_of(bundle)
    with client_of(service) as client:
        opened = client.post("/v1/views", files={"file": ("a.nii", content)}).json()
        view = f"/v1/views/{opened['view']}"
        assert opened["values"] == [0, 590]
        assert opened["window"] == pytest.approx(np.percentile(values, (0.5, 99.5)))
        plane = values[..., 1].T  # as a radiologist sees it: columns are the first axis here, not turned
        shown = from_png(client.get(f"{view}/image?slice=1&low=0&high=255").content)
        np.testing.assert_array_equal(shown, np.clip(plane, 0, 255))
        mask = np.frombuffer(client.get(f"{view}/mask?slice=1").content, np.uint8).reshape(plane.shape)
        labelled = gzip.decompress(client.get(f"{view}/answer", headers={"accept": NIFTI}).content)
        np.testing.assert_array_equal(np.asarray(nibabel.Nifti1Image.from_bytes(labelled).dataobj)[..., 1].T, mask)
        wrong = [f"{view}/image?slice=3", f"{view}/mask?slice=3", "/v1/views/nothing/image"]
        assert [client.get(one).status_code for one in wrong] == [404] * 3
        odd = ["slice=-1", "slice=x", "low=1", "low=2&high=1", "low=nan&high=1"]
        assert [client.get(f"{view}/image?{one}").status_code for one in odd] == [422] * 5
        assert client.delete(view).status_code == 204
        assert client.get(f"{view}/mask").status_code == 404
        assert not service.views.open


def test_a_file_that_is_closed_while_it_is_worked_on_is_told_as_not_open(bundle: Path) -> None:
    """Not as a file that cannot be read (422), which the user would look for in their image."""
    service = service_of(bundle)
    name = service.open_upload("a.png", as_png(picture())).view

    def shown(view: View) -> np.ndarray:
        service.views.close(name)
        return view.image(0, None, service.segmenter)

    with pytest.raises(Refused, match="not open any more") as refused:
        service.views.of(name, shown)
    assert refused.value.status == 404
    with pytest.raises(Refused, match="There is no slice 9"):
        service.views.of(service.open_upload("a.png", as_png(picture())).view, lambda view: view.place(9))


def test_only_so_many_files_stay_open_and_only_so_long(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(bundle, limits=Limits(views=2, view_minutes=1))
    with client_of(service) as client:
        names = [
            client.post("/v1/views", files={"file": ("a.png", as_png(picture()))}).json()["view"] for _ in range(3)
        ]
        assert [client.get(f"/v1/views/{name}/mask").status_code for name in names] == [404, 200, 200]
        folders = [view.done.folder for view in service.views.open.values()]
        for view in service.views.open.values():
            view.used -= 61
        assert client.get(f"/v1/views/{names[2]}/mask").status_code == 404
    assert [folder.contents for folder in folders] == [{}, {}]


def test_open_files_take_no_more_memory_than_is_stated(bundle: Path) -> None:
    """Two of 2000 voxels with their labels fit into 2 * 5000 bytes; packed they are a hundred bytes each."""
    service = service_of(bundle, limits=Limits(unpacked=5000))
    volume, large = big_nifti((20, 10, 10)), as_png(np.random.default_rng(0).integers(0, 255, (70, 70, 3), np.uint8))
    with client_of(service) as client:
        names = [client.post("/v1/views", files={"file": ("a.nii.gz", volume)}).json()["view"] for _ in range(2)]
        folders = [view.done.folder for view in service.views.open.values()]
        assert client.get(f"/v1/views/{names[0]}/mask").status_code == 200
        names.append(client.post("/v1/views", files={"file": ("a.nii.gz", volume)}).json()["view"])
        assert list(service.views.open) == [names[0], names[2]], "the one that was not looked at for longest is gone"
        assert [len(folder.contents) for folder in folders] == [1, 0]
        names.append(client.post("/v1/views", files={"file": ("a.png", large)}).json()["view"])
        assert list(service.views.open) == [names[3]], "one that is larger than the limit stays alone"


def test_there_is_an_example_of_each_family_as_it_is_drawn() -> None:
    """``Image.fromarray(draw_phantom(family, 3, size=256, seed=7).image).save(path, quality=90)`` makes them anew."""
    assert EXAMPLES.keys() == FAMILIES.keys()
    for family, path in EXAMPLES.items():
        drawn = draw_phantom(family, 3, size=256, seed=7).image.astype(float)
        assert np.abs(np.asarray(Image.open(path).convert("RGB")) - drawn).mean() < 6


def test_examples_are_drawn_and_those_of_another_family_are_not_there(tmp_path: Path) -> None:
    with client_of(service_of(write_bundle(tmp_path, dataset="phantoms/fundus"))) as client:
        assert client.get("/v1/model").json()["examples"] == ["fundus"]
        assert client.post("/v1/examples/fundus").json()["found"]["kind"] == "image"
        assert client.post("/v1/examples/..%2Fx").status_code == 404


def test_the_card_is_html_in_which_nothing_runs() -> None:
    """Red where a class called <script> becomes a tag, a link runs a script, or a style breaks the page's policy."""
    text = "<script>alert(1)</script> [x](javascript:alert(1)) ![y](http://e.example/z.png)"
    card = f"# A\n\n{text}\n\n| n |\n|---:|\n| 1 |\n"
    html = card_html(card)
    assert '<td class="number">1</td>' in html
    assert [bad for bad in ("<script", 'href="javascript', "<img", "style=") if bad in html] == []


def test_metrics_count_by_route_and_status(client: TestClient) -> None:
    send(client, as_png(picture()))
    client.get("/nowhere")
    told = client.get("/metrics").text
    assert 'tskd_requests_total{method="POST",route="/v1/segment",status="200"}' in told
    assert 'route="none",status="404"' in told
    assert "tskd_slices_total" in told


def test_the_interface_is_described(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert described["paths"]["/v1/segment"]["post"]["requestBody"]["content"].keys() == {"multipart/form-data"}
    assert {"400", "401", "406", "413", "415", "422", "503", "504"} <= described["paths"]["/v1/segment"]["post"][
        "responses"
    ].keys()
    assert client.get("/docs").status_code == 404, "its page would fetch scripts from elsewhere"
    json.dumps(described)
