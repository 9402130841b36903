"""A bundle becomes a static folder: what lies in it, what its page may do, what is refused, and nothing is lost."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.unit.test_network_file import network, write
from tskd import cli
from tskd.data.intensity import IntensityWindow, apply_window
from tskd.deploy import web
from tskd.deploy.bundle import open_bundle, write_sums
from tskd.deploy.web import POLICY, card_html, write_web
from tskd.errors import UserError
from tskd.machine.disk import replaced_folder

CARD = (
    "# A <b>card</b>\n\n| use | images |\n|---|---:|\n| train | 3 |\n\n[x](javascript:alert(1)) ![y](http://z/z.png)\n"
)


def write_runtime(folder: Path, version: str = "1.30.0") -> Path:
    """Write a folder that looks like an unpacked onnxruntime-web: tests download nothing."""
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": version}))
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm", "ort.webgpu.mjs"):
        (folder / "dist" / name).write_text(f"stand-in of {name}")
    return folder


def write_bundle(folder: Path, name: str = "cyst", window: list[float] | None = None) -> Path:
    folder.mkdir()
    described = {"classes": [name], "input": {"window": window}, "doubt": {"look_below": 0.75}}
    (folder / "model.json").write_text(json.dumps(described))
    write(folder / "model.onnx", network())
    (folder / "MODEL_CARD.md").write_text(CARD)
    write_sums(folder)
    return folder


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    return write_runtime(tmp_path / "runtime")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "model")


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class Tags(HTMLParser):
    """What a page has of scripts, styles and addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_folder_has_all_that_the_page_needs_and_lists_it(bundle: Path, runtime: Path, tmp_path: Path) -> None:
    """Red where a file is not listed for the service worker (it would be missing offline), or its digest is wrong."""
    site = write_web(open_bundle(bundle), tmp_path / "site", runtime=runtime)
    there = names_in(site)
    assert {"index.html", "app.js", "style.css", "sw.js", "manifest.webmanifest", "page.json", "MODEL_CARD.md"} <= there
    assert {name for name in there if name.startswith("ort/")} == {
        "ort/ort.wasm.min.js", "ort/ort-wasm-simd-threaded.js", "ort/ort-wasm-simd-threaded.wasm",
    }  # fmt: skip
    told = json.loads((site / "files.js").read_text().removeprefix("self.TSKD = ").removesuffix(";\n"))
    assert set(told["files"]) == there - {"sw.js", "files.js", "SHA256SUMS"}
    for name, integrity in told["files"].items():
        digest = hashlib.sha256((site / name).read_bytes()).digest()
        assert integrity == f"sha256-{base64.b64encode(digest).decode()}"
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=site, check=True)
    assert len((site / "SHA256SUMS").read_text().splitlines()) == len(there) - 1
    assert (site / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    assert "Permission is hereby granted" in (site / "LICENSES/onnxruntime.txt").read_text()
    assert "Apache License" in (site / "LICENSES/tskd.txt").read_text()
    assert "1.30.0" in (site / "LICENSES/NOTICE.txt").read_text()


def test_the_page_has_no_script_style_or_address_but_its_own(bundle: Path, runtime: Path, tmp_path: Path) -> None:
    """Red where a script or style stands in the page, a path breaks below another folder, or a card's tag lives."""
    site = write_web(open_bundle(bundle), tmp_path / "site", runtime=runtime)
    page = (site / "index.html").read_text()
    tags = Tags(page).seen
    policy = next(at["content"] for tag, at in tags if at.get("http-equiv") == "Content-Security-Policy")
    assert policy == POLICY
    assert "default-src 'none'" in POLICY
    assert "connect-src 'self';" in POLICY
    assert "unsafe-inline" not in POLICY
    assert "'unsafe-eval'" not in POLICY
    assert [at.get("src") for tag, at in tags if tag == "script"] == ["app.js"]
    assert "<style" not in page
    assert not [at for _, at in tags if "style" in at or any(name.startswith("on") for name in at)]
    loaded = [at for tag, at in tags if tag != "a"]  # a link in a card leads where it says, if somebody follows it
    addresses = [at[name] or "" for at in loaded for name in ("src", "href") if name in at]
    assert not [one for one in addresses if re.match(r"/|\w+:", one)]
    assert "A &lt;b&gt;card&lt;/b&gt;" in page
    assert '<td class="number">3</td>' in page
    assert not [tag for tag, _ in tags if tag in ("img", "b")]
    scripts = [path.read_text() for path in site.glob("*.js")]
    assert not [script for script in scripts if re.search(r"https?://", script)]
    assert not [script for script in scripts if ".innerHTML" in script]


def test_names_of_classes_are_text(runtime: Path, tmp_path: Path) -> None:
    name = '"><script src="x.js"></script>$policy\u202e'
    bundle = write_bundle(tmp_path / "odd", name=name)
    site = write_web(open_bundle(bundle), tmp_path / "site", runtime=runtime)
    page = (site / "index.html").read_text()
    assert [at.get("src") for tag, at in Tags(page).seen if tag == "script"] == ["app.js"]
    assert "\u202e" not in page, "it would turn the direction of the page"
    assert json.loads((site / "manifest.webmanifest").read_text())["name"].endswith("</script>$policy\\u202e")


@pytest.mark.parametrize("window", [None, [-160.0, 240.0], [50.0, 180.0]])
def test_the_page_knows_the_intensity_window(window: list[float] | None, runtime: Path, tmp_path: Path) -> None:
    """Red where the page shows the network other levels than ``predict`` does."""
    bundle = write_bundle(tmp_path / "windowed", window=window)
    told = json.loads((write_web(open_bundle(bundle), tmp_path / "site", runtime=runtime) / "page.json").read_text())
    levels = window and apply_window(np.arange(256), IntensityWindow(*window)).tolist()
    assert told["levels"] == levels
    assert told["look_below"] == 0.75
    assert [one["name"] for one in told["classes"]] == ["cyst"]


def test_another_network_has_another_version(runtime: Path, tmp_path: Path) -> None:
    """Red where a phone would go on with the old network after a new export; the same export is the same version."""
    versions = []
    for number, window in enumerate([None, None, [0.0, 9.0]]):
        bundle = write_bundle(tmp_path / f"model{number}", window=window)
        site = write_web(open_bundle(bundle), tmp_path / f"site{number}", runtime=runtime)
        versions.append(re.findall(r'"version": "(\w{16})"', (site / "files.js").read_text())[0])
    assert versions[0] == versions[1] != versions[2]


def test_an_earlier_folder_is_replaced_as_a_whole(bundle: Path, runtime: Path, tmp_path: Path) -> None:
    site = write_web(open_bundle(bundle), tmp_path / "site", runtime=runtime)
    (site / "app.js").write_text("changed")
    write_web(open_bundle(bundle), site, runtime=runtime)
    assert (site / "app.js").read_text() != "changed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "runtime", "site"]


@pytest.mark.parametrize("what", ["notes.txt", "LICENSES/mine.txt", ".htaccess"])
def test_a_folder_with_something_else_is_left_alone(what: str, bundle: Path, runtime: Path, tmp_path: Path) -> None:
    """Red where an export would delete somebody's file."""
    site = write_web(open_bundle(bundle), tmp_path / "site", runtime=runtime)
    (site / what).write_text("mine")
    before = names_in(site)
    with pytest.raises(UserError, match=rf"{re.escape(what)} is not of one"):
        write_web(open_bundle(bundle), site, runtime=runtime)
    assert names_in(site) == before


def test_bundles_files_and_other_folders_are_no_place(bundle: Path, runtime: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "SHA256SUMS").write_text(f"{'0' * 64}  index.html\n")
    (tmp_path / "file").write_text("x")
    for place, why in ((bundle, "lies in the bundle"), (bundle / "web", "lies in the bundle"),
                       (other, "SHA256SUMS is not of one"), (tmp_path / "file", "is a file")):  # fmt: skip
        with pytest.raises(UserError, match=why):
            write_web(open_bundle(bundle), place, runtime=runtime)
    assert names_in(bundle) == {"model.json", "model.onnx", "MODEL_CARD.md", "SHA256SUMS"}


def test_what_fails_midway_leaves_the_old_folder(
    bundle: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red where a full disk would leave half a page, or none."""
    site = write_web(open_bundle(bundle), tmp_path / "site", runtime=runtime)
    before = names_in(site)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(web, "_write_lists", full)
    with pytest.raises(OSError, match="No space"):
        write_web(open_bundle(bundle), site, runtime=runtime)
    assert names_in(site) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "runtime", "site"]


def test_a_folder_that_cannot_take_its_place_brings_the_old_one_back(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").touch()
    with pytest.raises(FileNotFoundError), replaced_folder(place) as partial:
        partial.rmdir()  # as if it were gone when it is renamed
    assert names_in(place) == {"old"}


def test_a_runtime_that_is_none_is_named_with_the_remedy(bundle: Path, runtime: Path, tmp_path: Path) -> None:
    """Red where a page would be written that cannot run."""
    (runtime / "dist/ort-wasm-simd-threaded.wasm").unlink()
    other = write_runtime(tmp_path / "other")
    (other / "package.json").write_text("[]")
    for folder, why in ((runtime, "dist/ort-wasm-simd-threaded.wasm is missing"), (other, "its package.json says"),
                        (tmp_path / "nowhere", "there is none")):  # fmt: skip
        with pytest.raises(UserError, match=rf"{why}.*npm ci.*--runtime or TSKD_ONNXRUNTIME_WEB"):
            write_web(open_bundle(bundle), tmp_path / "site", runtime=folder)
    assert not (tmp_path / "site").exists()


def test_another_version_of_the_runtime_is_said(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_web(open_bundle(bundle), tmp_path / "site", runtime=write_runtime(tmp_path / "newer", "1.99.0"))
    assert "onnxruntime-web 1.99.0 is used; the page was tried with 1.30.0" in capsys.readouterr().err


def test_a_network_of_somebody_else_is_refused(runtime: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "model")
    write(bundle / "model.onnx", network(domain="com.somebody"))
    write_sums(bundle)
    with pytest.raises(UserError, match="operators that are not ONNX's own"):
        write_web(open_bundle(bundle), tmp_path / "site", runtime=runtime)
    assert not (tmp_path / "site").exists()


def test_the_command_takes_the_runtime_from_the_environment_and_refuses_int8(
    bundle: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(cli.RUNTIME_VARIABLE, str(runtime))
    assert not cli.app(["export", str(bundle), "--web", str(tmp_path / "site")], standalone_mode=False)
    assert capsys.readouterr().out == f"{tmp_path / 'site'}\n"
    with pytest.raises(UserError, match=r"give the file: MODEL/model\.int8\.onnx"):
        cli.app(["export", str(bundle), "--web", str(tmp_path / "two"), "--int8"], standalone_mode=False)
    assert not (tmp_path / "two").exists()


def test_a_card_is_text() -> None:
    shown = card_html(CARD)
    assert "javascript:" not in Tags(shown).seen.__repr__()
    assert "style=" not in shown


def test_the_lock_pins_what_is_asked_for() -> None:
    """Red where package.json was changed and the lock was not, or a package has no digest."""
    lock = json.loads((web.WEB / "package-lock.json").read_text())["packages"]
    wanted = json.loads((web.WEB / "package.json").read_text())["dependencies"]
    assert lock[""]["dependencies"] == wanted
    assert lock["node_modules/onnxruntime-web"]["version"] == wanted["onnxruntime-web"]
    assert all(one["integrity"].startswith("sha512-") for name, one in lock.items() if name)
