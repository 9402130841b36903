"""A study from a DICOMweb server and its segmentation back: a stand-in here, and Orthanc where it is installed."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import onnx
import pytest
from pydicom import Dataset, dcmread
from typer.testing import CliRunner, Result

from tests.dicoms import SECRETS, STUDY, save_series
from tests.unit.test_network_file import network
from tskd.cli import app
from tskd.deploy.bundle import write_sums
from tskd.deploy.dicomweb import LOGIN, TOKEN, fetch_study, require_safe, store
from tskd.errors import UserError
from tskd.machine.disk import write_json

ORTHANC, PLUGIN = "Orthanc", Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
LETTERS = "tskd:secret-word"


class Archive(BaseHTTPRequestHandler):
    """As much of PS3.18 as a study in and a segmentation out take; it demands a token or password."""

    held: list[bytes]
    page: int | None = None
    """Series told at once; None: all, wherever the client asks to begin."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _may_not(self) -> bool:
        if self.headers.get("Authorization", "").startswith(("Bearer good", "Basic ")):
            return False
        self._answer(b"Doe^Jane", "text/plain", 401)
        return True

    def do_GET(self) -> None:
        if self._may_not():
            return
        found = [dcmread(io.BytesIO(one)) for one in self.held]
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[-1] == "series":
            series = {str(one.SeriesInstanceUID): one for one in found if one.StudyInstanceUID == parts[-2]}
            tags = ("SeriesInstanceUID", "Modality", "StudyInstanceUID")
            told = []
            for one in series.values():
                item = Dataset()
                for tag in tags:
                    setattr(item, tag, one.get(tag))
                told.append(item.to_json_dict())
            if self.page is not None:
                start = int(parse_qs(urlsplit(self.path).query).get("offset", ["0"])[0])
                told = told[start : start + self.page]
            self._answer(json.dumps(told).encode(), "application/dicom+json")
            return
        body = b"".join(
            b"--cut\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n"
            for content, one in zip(self.held, found, strict=True)
            if one.SeriesInstanceUID == parts[-1]
        )
        self._answer(body + b"--cut--", 'multipart/related; type="application/dicom"; boundary=cut')

    def do_POST(self) -> None:
        if self._may_not():
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = BytesParser(policy=HTTP).parsebytes(head + body)
        answer = Dataset()
        failed, taken = [], []
        for part in message.iter_parts():
            content = part.get_payload(decode=True)
            item = Dataset()
            item.ReferencedSOPInstanceUID = dcmread(io.BytesIO(content)).SOPInstanceUID
            (failed if self.path.startswith("/full") else taken).append(item)
            self.held.append(content)
        answer.ReferencedSOPSequence, answer.FailedSOPSequence = taken, failed
        self._answer(json.dumps(answer.to_json_dict()).encode(), "application/dicom+json")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(TOKEN, "good-token")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Held", (Archive,), {"held": []}))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/dicom-web"
    server.shutdown()
    server.server_close()


@pytest.fixture
def orthanc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    program = shutil.which(ORTHANC) or shutil.which(ORTHANC, path="/usr/sbin")
    if program is None or not PLUGIN.is_file():
        pytest.skip("Orthanc with its DICOMweb plug-in is not installed (Debian: orthanc, orthanc-dicomweb)")
    monkeypatch.setenv(LOGIN, LETTERS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    user, password = LETTERS.split(":")
    settings = {
        "StorageDirectory": str(tmp_path / "db"), "IndexDirectory": str(tmp_path / "db"), "Plugins": [str(PLUGIN)],
        "HttpPort": port, "DicomServerEnabled": False, "RemoteAccessAllowed": False, "AuthenticationEnabled": True,
        "RegisteredUsers": {user: password},
    }  # fmt: skip
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with (tmp_path / "orthanc.log").open("wb") as log:
        server = subprocess.Popen([program, str(tmp_path / "orthanc.json")], stdout=log, stderr=log)
    try:
        _wait(f"http://127.0.0.1:{port}/", tmp_path / "orthanc.log")
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        server.terminate()
        server.wait(20)


def _wait(url: str, log: Path) -> None:
    for _ in range(150):
        try:
            urllib.request.urlopen(url, timeout=1)
        except urllib.error.HTTPError:
            return  # it asks for a password
        except OSError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    onnx.save(network(), folder / "model.onnx")
    write_json(folder / "model.json", {"classes": ["liver"], "input": {"window": None}, "dataset": "made up"})
    write_sums(folder)
    return folder


def predict(model: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["predict", str(model), "--out", str(out), *more])


@pytest.mark.parametrize("page", [None, 1, 2])
def test_every_series_of_a_study_is_fetched_once(
    page: int | None, stand_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from a server that tells them page by page: the others were left out without a word."""
    files = [
        save_series(tmp_path / n, [(0, 0, 0), (0, 0, 1)], **{**STUDY, "SeriesInstanceUID": f"1.2.{n}"}) for n in "123"
    ]
    for paths in files:
        store(stand_in, paths)
    monkeypatch.setattr(Archive, "page", page)
    (tmp_path / "in").mkdir()
    assert fetch_study(stand_in, STUDY["StudyInstanceUID"], tmp_path / "in") == 6
    fetched = [dcmread(path).SeriesInstanceUID for path in (tmp_path / "in").rglob("*.dcm")]
    assert sorted(fetched) == ["1.2.1", "1.2.1", "1.2.2", "1.2.2", "1.2.3", "1.2.3"]


@pytest.mark.parametrize("server", ["stand_in", "orthanc"])
def test_a_study_is_fetched_segmented_and_stored(
    server: str, model: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url, study = request.getfixturevalue(server), STUDY["StudyInstanceUID"]
    paths = save_series(tmp_path / "scan", [(1, 2, 3 * k) for k in range(4)], **STUDY)
    store(url, paths)
    first = predict(model, tmp_path / "a", "--dicomweb", url, "--study", str(study))
    assert first.exit_code == 0, first.output
    assert fetch_study(url, str(study), _made(tmp_path / "unsent")) == 4, "sent without --send"
    result = predict(model, tmp_path / "b", "--dicomweb", url, "--study", str(study), "--send")
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "b").glob("*.seg.dcm")
    ours = dcmread(path)
    assert ours.SOPInstanceUID == dcmread(next((tmp_path / "a").glob("*.seg.dcm"))).SOPInstanceUID
    stored = _instance(url, str(study), str(ours.SeriesInstanceUID))
    np.testing.assert_array_equal(stored.pixel_array, ours.pixel_array)
    uids = [str(dcmread(one).SOPInstanceUID) for one in paths]
    named = [str(one.ReferencedSOPInstanceUID) for one in stored.ReferencedSeriesSequence[0].ReferencedInstanceSequence]
    assert sorted(named) == sorted(uids)
    assert fetch_study(url, str(study), _made(tmp_path / "again")) == 4, "a segmentation is no scan"
    told = first.output + result.output
    assert not any(secret in told for secret in (*SECRETS, "good-token", "secret-word"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _instance(url: str, study: str, series: str) -> Dataset:
    from tskd.deploy.dicomweb import _client

    (found,) = _client(url).iter_series(study, series)
    return found


def test_what_a_server_refuses_is_one_sentence_without_its_words(
    stand_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = save_series(tmp_path / "scan", [(1, 2, 3)], **STUDY)
    with pytest.raises(UserError, match="has no scans of this study"):
        fetch_study(stand_in, "1.2.3.4", tmp_path)
    with pytest.raises(UserError, match="did not take IM0000"):
        store(stand_in.replace("dicom-web", "full"), [path])
    monkeypatch.setenv(TOKEN, "bad-token")
    with pytest.raises(UserError, match=f"status 401. Give {TOKEN}") as caught:
        fetch_study(stand_in, "1.2.3.4", tmp_path)
    assert not any(secret in str(caught.value) for secret in (*SECRETS, "bad-token"))
    with pytest.raises(UserError, match="cannot be reached"):
        fetch_study("http://127.0.0.1:9/dicom-web", "1.2.3.4", tmp_path)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://archive.example/dicom-web", "Use https"),
        ("https://me:word@archive.example/", "holds a password"),
        ("archive.example", "must be a URL"),
        ("file:///etc/passwd", "must be a URL"),
    ],
)
def test_an_unsafe_url_is_refused_before_anything_is_sent(url: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        require_safe(url)
    assert "word@" not in str(caught.value)
    require_safe("https://archive.example/dicom-web")
    require_safe("http://localhost:8042/dicom-web")


@pytest.mark.parametrize(
    "more", [("--study", "1.2"), ("--send",), ("--dicomweb", "http://127.0.0.1:9/x"), ()], ids=" ".join
)
def test_options_that_do_not_belong_together_are_named(more: tuple[str, ...], model: Path, tmp_path: Path) -> None:
    result = predict(model, tmp_path / "out", *more)
    assert isinstance(result.exception, UserError)
    assert not (tmp_path / "out").exists()
