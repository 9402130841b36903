"""A bundle as a static folder whose page runs the network in a browser: no server of ours, no image that leaves."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import shutil
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from tskd.console import printable, warn
from tskd.data.intensity import apply_window
from tskd.deploy.bundle import CARD, SUMS, Bundle
from tskd.deploy.card import card_html
from tskd.errors import UserError, require_folder
from tskd.machine.disk import file_sha256, replaced_folder
from tskd.overlays import class_colour

WEB = Path(__file__).parents[1] / "web"
PAGE = WEB / "page"
_RUNTIME = WEB / "node_modules" / "onnxruntime-web"
_RUNTIME_FILES = {
    "ort.wasm.min.mjs": "ort.wasm.min.js",
    "ort-wasm-simd-threaded.mjs": "ort-wasm-simd-threaded.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
"""File of onnxruntime-web -> its name in the folder: some web servers do not know ``.mjs`` as a script."""
_WORKER, _KEPT = "sw.js", "files.js"
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'"
)
"""What the page may load (Content-Security-Policy): its own files; no script that stands in a page, no other origin."""
_NOTICE = """This folder holds the work of several authors.

onnxruntime-web {runtime} (folder ort), Copyright (c) Microsoft Corporation: MIT, text in onnxruntime.txt;
what it is built from: onnxruntime-third-party.txt
The page, by tskd {tskd}: Apache-2.0, text in tskd.txt
The network ({network}): whoever trained it says who may use it; MODEL_CARD.md says what it is for.
"""


def write_web(bundle: Bundle, folder: Path, *, runtime: Path | None = None) -> Path:
    """Write the static folder of a bundle's network and return it; an older one there is replaced when it is whole.

    ``runtime`` is an unpacked onnxruntime-web, None: the one beside the package. Raises UserError where that is not
    there, where the network is not one of ours or answers in tiles, and where ``folder`` holds anything that this did
    not write.
    """
    require_folder(folder)
    if bundle.tile is not None:
        raise UserError(
            f"{bundle.folder}: its model answers large images in tiles of {bundle.tile} px, which the page in a "
            "browser does not do. `tskd predict` and `tskd serve` do."
        )
    place = folder.resolve()
    bundle.refuse_inside(place, "--web")
    _require_ours(place)
    runtime, version = _find_runtime(runtime)
    bundle.session(threads=1)  # refuses what is not a network of ours
    with replaced_folder(place) as partial:
        _copy_runtime(runtime, partial / "ort")
        shutil.copyfile(bundle.folder / bundle.network, partial / bundle.network)
        _write_licences(partial / "LICENSES", runtime=version, network=bundle.network)
        _write_page(bundle, partial)
        _write_lists(partial)
    return folder


def _require_ours(place: Path) -> None:
    """Raise UserError where the folder's place is taken: nothing of anybody else is replaced."""
    if not place.exists() or not any(place.iterdir()):
        return
    sums = place / SUMS
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines() if sums.is_file() else []
    known = {line.partition("  ")[2] for line in lines} | {SUMS}
    foreign = sorted(_names_in(place) - known)
    if foreign or not {"index.html", _WORKER, _KEPT} <= known:
        what = foreign[0] if foreign else SUMS
        raise UserError(
            f"{place} is not empty and not (only) an earlier `tskd export --web`: {printable(what)} is not of one. "
            "Give a new folder with --web."
        )


def _names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def _find_runtime(given: Path | None) -> tuple[Path, str]:
    """Return the folder of onnxruntime-web and its version, once it has all that is copied."""
    folder = given or _RUNTIME
    how = (
        f"Run `npm ci --ignore-scripts` in {WEB} (`make web` in a checkout), or name an unpacked onnxruntime-web "
        f"{_wanted_version()} with --runtime or TSKD_ONNXRUNTIME_WEB."
    )
    if not folder.is_dir():
        raise UserError(f"{folder}: the page needs onnxruntime-web, and there is none. {how}")
    try:
        package = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        name, version = package["name"], str(package["version"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        name, version = None, ""
    missing = [one for one in _RUNTIME_FILES if not (folder / "dist" / one).is_file()]
    if name != "onnxruntime-web" or missing:
        what = f"dist/{missing[0]} is missing" if missing else "its package.json says something else"
        raise UserError(f"{folder} is not an unpacked onnxruntime-web: {what}. {how}")
    if version != _wanted_version():
        warn(f"onnxruntime-web {printable(version)} is used; the page was tried with {_wanted_version()}")
    return folder, printable(version)


def _wanted_version() -> str:
    wanted = json.loads((WEB / "package.json").read_text(encoding="utf-8"))
    return str(wanted["dependencies"]["onnxruntime-web"])


def _copy_runtime(runtime: Path, folder: Path) -> None:
    folder.mkdir()
    for name, ours in _RUNTIME_FILES.items():
        shutil.copyfile(runtime / "dist" / name, folder / ours)


def _write_licences(folder: Path, *, runtime: str, network: str) -> None:
    """Write who made what; onnxruntime's own texts come from its Python package, since its npm package has none."""
    folder.mkdir()
    spec = find_spec("onnxruntime")
    texts = Path(str(spec.origin)).parent if spec else Path()
    shutil.copyfile(texts / "LICENSE", folder / "onnxruntime.txt")
    shutil.copyfile(texts / "ThirdPartyNotices.txt", folder / "onnxruntime-third-party.txt")
    own = metadata.distribution("tskd")
    (folder / "tskd.txt").write_text(_own_licence(own), "utf-8")
    notice = _NOTICE.format(runtime=runtime, tskd=own.version, network=network)
    (folder / "NOTICE.txt").write_text(notice, encoding="utf-8")


def _own_licence(own: metadata.Distribution) -> str:
    """Return our licence: of the installed package, or of the source tree that it is used from."""
    source = Path(__file__).parents[2] / "LICENSE"
    kept = own.read_text("licenses/LICENSE") or own.read_text("LICENSE")
    return kept or source.read_text(encoding="utf-8")


def _write_page(bundle: Bundle, folder: Path) -> None:
    title = f"Segmentation of {', '.join(bundle.classes)}"
    values = {"policy": html.escape(POLICY), "title": html.escape(printable(title)), "card": card_html(bundle.card)}
    for path in PAGE.iterdir():
        shutil.copyfile(path, folder / path.name)
    _fill(folder / "index.html", values)
    _fill(folder / "manifest.webmanifest", {"title": json.dumps(printable(title))})
    (folder / CARD).write_text(bundle.card, encoding="utf-8")
    (folder / "page.json").write_text(json.dumps(_told_to_page(bundle), indent=2) + "\n", encoding="utf-8")


def _fill(path: Path, values: dict[str, str]) -> None:
    path.write_text(Template(path.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")


def _told_to_page(bundle: Bundle) -> dict[str, Any]:
    """Return what the page has to know; ``levels``: what the intensity window makes of the 256 levels of a file."""
    classes = [
        {"name": printable(name), "colour": class_colour(label)} for label, name in enumerate(bundle.classes, start=1)
    ]
    window = bundle.window
    levels = None if window is None else apply_window(np.arange(256, dtype=np.uint8), window).tolist()
    return {"network": bundle.network, "classes": classes, "look_below": bundle.look_below, "levels": levels}


def _write_lists(folder: Path) -> None:
    """Write what the service worker keeps, named by its content, and the digests by which a copy can be checked."""
    kept = {name: _integrity(folder / name) for name in sorted(_names_in(folder)) if name != _WORKER}
    version = hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:16]
    told = json.dumps({"version": version, "policy": POLICY, "files": kept}, indent=2)
    (folder / _KEPT).write_text(f"self.TSKD = {told};\n", encoding="utf-8")
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in sorted(_names_in(folder))]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _integrity(path: Path) -> str:
    """Return the digest of a file as browsers want it (W3C, Subresource Integrity)."""
    return f"sha256-{base64.b64encode(bytes.fromhex(file_sha256(path))).decode()}"
