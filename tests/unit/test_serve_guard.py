"""Who may ask a server: names, origins, tokens; what every answer carries; where it may listen."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.serving import as_png, client_of, picture, service_of, write_bundle
from tskd.cli import main
from tskd.errors import UserError
from tskd.machine.listening import listening
from tskd.serve.accept import preferred
from tskd.serve.app import create_app
from tskd.serve.guard import HEADERS, POLICY, Access
from tskd.serve.start import TOKEN_VARIABLE, Address, access_for

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[TestClient]:
    with client_of(service_of(bundle)) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(bundle: Path) -> Iterator[TestClient]:
    access = Access(TOKEN, frozenset({"localhost", "clinic.example"}))
    with client_of(service_of(bundle, access=access)) as client:
        yield client


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1", 200), ("127.0.0.1:8000", 200), ("localhost:9", 200), ("[::1]:8000", 200), ("10.0.0.7", 200),
     ("evil.example", 421), ("localhost.evil.example", 421), ("127.0.0.1.evil.example", 421), ("", 421), ("[", 421),
     ("clinic.example", 421)],
)  # fmt: skip
def test_a_name_that_is_not_the_servers_is_refused(host: str, status: int, client: TestClient) -> None:
    """DNS rebinding: a page of evil.example whose name comes to mean 127.0.0.1."""
    assert client.get("/healthz", headers={"host": host}).status_code == status


def test_a_name_that_was_allowed_is_answered(guarded: TestClient) -> None:
    assert guarded.get("/healthz", headers={"host": "clinic.example"}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://127.0.0.1", 200), ("https://evil.example", 403), ("null", 403), ("http://127.0.0.1:9", 403)],
)
def test_pages_of_other_servers_may_not_send(origin: str, status: int, client: TestClient) -> None:
    answer = client.post("/v1/segment", files={"file": ("a.png", as_png(picture()))}, headers={"origin": origin})
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/model", "/metrics", "/openapi.json", "/v1/pool", "/v1/views/x/mask"])
@pytest.mark.parametrize(
    "given", [None, "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer é"]
)
def test_without_the_token_nothing_is_told(given: str | None, path: str, guarded: TestClient) -> None:
    headers = {} if given is None else {"authorization": given.encode()}
    answer = guarded.get(path, headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_with_the_token_all_is_told_and_the_page_comes_without(guarded: TestClient) -> None:
    assert guarded.get("/v1/model", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert [guarded.get(path).status_code for path in ("/", "/static/app.js", "/healthz")] == [200] * 3
    assert guarded.get("/static/../openapi.json").status_code == 401


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/healthz", "/nowhere", "/v1/segment"])
def test_every_answer_has_the_headers_that_protect_it(path: str, client: TestClient) -> None:
    answer = client.get(path)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in POLICY
    assert "http" not in POLICY
    assert client.get("/", headers={"host": "evil.example"}).headers["content-security-policy"] == POLICY


def test_static_files_do_not_lead_out_of_their_folder(client: TestClient) -> None:
    paths = ["/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/"]
    assert {client.get(path).status_code for path in paths} == {404}


def test_the_page_asks_nobody_else() -> None:
    """Red where a script or a style is fetched from another server, or is in the page itself."""
    static = Path(__file__).parents[2] / "tskd/serve/static"
    text = "".join(path.read_text(encoding="utf-8") for path in static.iterdir() if path.suffix != ".svg")
    assert "//" not in text.replace("// ", "").replace("\n//", "")
    page = (static / "index.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count('src="/static/') == 1
    assert "style=" not in page
    assert "onclick" not in page


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_this_machine_needs_no_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert access_for(Address(host)).token is None


def test_other_machines_need_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    open_to_all = Address("0.0.0.0")
    with pytest.raises(UserError, match="needs a token"):
        access_for(open_to_all)
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert access_for(open_to_all).token == TOKEN
    (tmp_path / "token").write_text(f"{TOKEN}-of-the-file\n")
    access = access_for(replace(open_to_all, token_file=tmp_path / "token", allowed_hosts=("Clinic.example",)))
    assert access.token == f"{TOKEN}-of-the-file"
    assert {"clinic.example", "localhost", socket.gethostname().lower()} <= access.hosts


@pytest.mark.parametrize("token", ["", "short", "with spaces in the middle", "ümlaut-ümlaut-ümlaut"])
def test_a_poor_token_is_refused(token: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(token, encoding="utf-8")
    with pytest.raises(UserError, match="16 or more plain characters"):
        access_for(Address(token_file=tmp_path / "token"))
    with pytest.raises(UserError, match="no such file"):
        access_for(Address(token_file=tmp_path / "nowhere"))


def test_a_taken_port_is_said_before_anything_is_answered(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit, match="2"):
            main(["serve", str(bundle), "--port", str(port)])
    assert f"port {port} of 127.0.0.1 is taken" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such address"):
        listening("nowhere.invalid", 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--host", "0.0.0.0"], "needs a token"), (["--pool", "."], "say where labels go"), ([], "has no bundle")],
)
def test_what_cannot_be_served_is_said(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(SystemExit, match="2"):
        main(["serve", str(tmp_path), *arguments])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("path", ["/v1/segment", "/v1/views"])
def test_a_client_that_breaks_off_is_no_defect(path: str, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = service_of(bundle)
    head = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": head, "query_string": b""}
    messages = iter([{"type": "http.request", "body": b"--b\r\n", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, object]:
        return next(messages)

    async def send(_: object) -> None: ...

    asyncio.run(create_app(service)(scope, receive, send))
    assert capsys.readouterr() == ("", "")
    assert f'tskd_requests_total{{method="POST",route="{path}",status="499"}} 1.0' in service.metrics.text().decode()
    assert service.gate.admitted == 0


@pytest.mark.parametrize("option", ["--max-megapixels", "--max-seconds"])
@pytest.mark.parametrize("given", ["nan", "inf", "1e10"])
def test_a_limit_that_limits_nothing_is_refused(
    option: str, given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A timer takes no 1e10 seconds, and NaN is always over."""
    with pytest.raises(SystemExit, match="2"):
        main(["serve", str(tmp_path), option, given])
    assert f"Invalid value for '{option}'" in capsys.readouterr().err


def test_ranges_of_accept_are_ranked_by_weight_then_by_what_is_offered_first() -> None:
    offered = ["a/x", "b/y"]
    asked = ("b/*, a/x;q=0.9", "*/*", "a/x;q=0, b/y", "a/x;q=oops", "c/z", " , ")
    assert [preferred(one, offered) for one in asked] == ["b/y", "a/x", "b/y", None, None, "a/x"]
