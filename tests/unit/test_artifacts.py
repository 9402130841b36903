"""Finished work: found again only when it is whole and was made from the same things."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from tskd.artifacts import (
    CHECKPOINTS,
    MANIFEST,
    SEAL,
    TRAINING_LOG,
    Artifact,
    Store,
    canonical_json,
    environment,
    find_by_digest,
    finished,
    finished_in,
    identify,
    measured,
    read_log,
    whole,
)
from tskd.errors import UserError
from tskd.machine.disk import naming
from tskd.machine.memory import peak_memory_mb

WORK: dict[str, Any] = {"config": {"steps": 3, "lr": 0.1}, "inputs": {"data": "abc"}, "seed": 1, "version": 1}


def make(folder: Path) -> Mapping[str, Any]:
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "weights.bin").write_bytes(b"weights")
    (folder / "model.json").write_text("{}")
    (folder / TRAINING_LOG).write_text('{"step": 1, "seconds": 0.3}\n')
    (folder / CHECKPOINTS).mkdir(exist_ok=True)
    (folder / CHECKPOINTS / "step-1.pt").write_bytes(b"state")
    return {"dice": 0.5}


def refuse(folder: Path) -> Mapping[str, Any]:
    raise AssertionError("this work was done before")


def test_equal_work_is_found_not_done_again(tmp_path: Path) -> None:
    first = Store(tmp_path).build("teacher", make, **WORK)
    again = Store(tmp_path).build("teacher", refuse, **WORK)
    assert again.path == first.path
    assert again.metrics == {"dice": 0.5}


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"steps": 4, "lr": 0.1}},
        {"config": {"steps": 3, "lr": 0.1, "more": None}},
        {"inputs": {"data": "abd"}},
        {"inputs": {}},
        {"seed": 2},
        {"version": 2},
    ],
    ids=str,
)
def test_other_work_has_another_name(tmp_path: Path, change: dict[str, Any]) -> None:
    store = Store(tmp_path)
    assert store.build("teacher", make, **WORK).path != store.build("teacher", make, **(WORK | change)).path


def test_the_stage_is_part_of_the_identity_and_the_order_of_keys_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.build("teacher", make, **WORK)
    other = store.build("distill", make, **WORK)
    assert first.path.name.startswith("teacher-")
    assert first.manifest["fingerprint"] != other.manifest["fingerprint"]
    turned = WORK | {"config": {"lr": 0.1, "steps": 3}}
    assert store.build("teacher", refuse, **turned).path == first.path


def test_the_manifest_says_what_made_it(tmp_path: Path) -> None:
    artifact = Store(tmp_path).build("teacher", make, **WORK)
    manifest = artifact.manifest
    assert {key: manifest[key] for key in ("stage", *WORK)} == {"stage": "teacher", **WORK}
    assert manifest["files"] == {
        "model.json": hashlib.sha256(b"{}").hexdigest(),
        "sub/weights.bin": hashlib.sha256(b"weights").hexdigest(),
        TRAINING_LOG: hashlib.sha256(b'{"step": 1, "seconds": 0.3}\n').hexdigest(),
    }
    assert manifest["metrics"] == {"dice": 0.5}
    assert manifest["seconds"] >= 0
    assert manifest["peak_memory_mb"] > 1
    assert manifest["peak_gpu_memory_mb"] == 0
    assert manifest["libraries"]["torch"]
    assert manifest["device"] == f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    assert "git_commit" in manifest
    assert manifest["fingerprint"].startswith(artifact.path.name.partition("-")[2])
    assert sorted(path.name for path in artifact.path.iterdir()) == [MANIFEST, TRAINING_LOG, "model.json", "sub"]


def test_the_digest_is_of_the_content_not_of_the_times(tmp_path: Path) -> None:
    def slower(folder: Path) -> Mapping[str, Any]:
        metrics = make(folder)
        (folder / TRAINING_LOG).write_text('{"step": 1, "seconds": 77}\n')
        return metrics

    def different(folder: Path) -> Mapping[str, Any]:
        metrics = make(folder)
        (folder / "sub" / "weights.bin").write_bytes(b"WEIGHTS")
        return metrics

    digests = [Store(tmp_path / f.__name__).build("teacher", f, **WORK).digest for f in (make, slower, different)]
    assert digests[0] == digests[1] != digests[2]


def test_an_interrupted_attempt_is_no_result_and_goes_on_in_its_folder(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> Mapping[str, Any]:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    def resume(folder: Path) -> Mapping[str, Any]:
        assert (folder / "half").read_text() == "half"
        return make(folder)

    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.build("teacher", interrupted, **WORK)
    assert not list(tmp_path.glob(f"*/{MANIFEST}"))
    assert "half" in store.build("teacher", resume, **WORK).manifest["files"]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(("before", "written", "left"), [
    (None, "half", []),
    ("half", "more", ["half", "more"]),
    (None, f"{CHECKPOINTS}/last", [CHECKPOINTS]),
])  # fmt: skip
def test_a_refusal_leaves_nothing_half_written_and_takes_no_work_away(
    before: str | None, written: str, left: list[str], tmp_path: Path
) -> None:
    def work(name: str, error: BaseException) -> Callable[[Path], Mapping[str, Any]]:
        def make(folder: Path) -> Mapping[str, Any]:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("half")
            raise error

        return make

    store = Store(tmp_path)
    if before:
        with pytest.raises(KeyboardInterrupt):
            store.build("teacher", work(before, KeyboardInterrupt()), **WORK)
    with pytest.raises(UserError, match="wrong"):
        store.build("teacher", work(written, UserError("wrong")), **WORK)
    kept = [path.name for path in tmp_path.glob("teacher-*/*") if path.name != "clock.json"]
    assert sorted(kept) == left
    assert bool(list(tmp_path.glob("teacher-*"))) == bool(left)


def test_a_kill_between_manifest_and_rename_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    store = Store(tmp_path)
    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        store.build("teacher", make, **WORK)
    monkeypatch.undo()
    store.build("teacher", make, **WORK)
    Store(tmp_path).build("teacher", refuse, **WORK)


def test_what_a_killed_attempt_left_hidden_is_no_part_of_the_result(tmp_path: Path) -> None:
    """A folder is drawn beside its name, ``.data.x7``, and renamed; SIGTERM runs no ``finally``."""
    clean = Store(tmp_path / "clean").build("teacher", make, **WORK)
    partial = tmp_path / "killed" / f"{clean.path.name}.partial"
    (partial / ".data.x7" / "images").mkdir(parents=True)
    (partial / ".data.x7" / "images" / "case0.png").write_bytes(b"half")
    (partial / "sub").mkdir()
    (partial / "sub" / ".weights.bin.17").write_bytes(b"half")
    killed = Store(tmp_path / "killed").build("teacher", make, **WORK)
    assert (killed.manifest["files"], killed.digest) == (clean.manifest["files"], clean.digest)
    assert not list(killed.path.rglob(".*"))


@pytest.mark.parametrize("content", [b"", bytes(64), b"{", b"[]", b"{}", b'{"seconds": null}', b"\xff"])
def test_a_clock_that_a_power_cut_left_unreadable_starts_anew(tmp_path: Path, content: bytes) -> None:
    name = Store(tmp_path / "first").build("teacher", make, **WORK).path.name
    partial = tmp_path / f"{name}.partial"
    partial.mkdir()
    (partial / "clock.json").write_bytes(content)
    assert Store(tmp_path).build("teacher", make, **WORK).manifest["seconds"] >= 0


LINES = [{"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.25}, {"step": 20, "val_score": 0.75}]


def test_a_log_cut_at_any_byte_keeps_its_whole_lines(tmp_path: Path) -> None:
    whole_text = "".join(json.dumps(line) + "\n" for line in LINES).encode()
    for length in range(len(whole_text) + 1):
        (tmp_path / TRAINING_LOG).write_bytes(whole_text[:length])
        assert read_log(tmp_path) == LINES[: whole_text[:length].count(b"\n")]


@pytest.mark.parametrize(
    "torn", [bytes(512), bytes(9) + b"\n", b"\xff\xfe\n", b"[1]\n", b'{"loss": 1}\n', b'{"step": {}}\n']
)
def test_a_log_with_lines_that_cannot_be_read_keeps_the_others(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / TRAINING_LOG).write_bytes(json.dumps(LINES[0]).encode() + b"\n" + torn)
    assert read_log(tmp_path) == LINES[:1]


def test_seconds_of_all_attempts_are_added(tmp_path: Path) -> None:
    def slow(folder: Path) -> Mapping[str, Any]:
        time.sleep(0.06)
        raise KeyboardInterrupt

    store = Store(tmp_path)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            store.build("teacher", slow, **WORK)
    assert store.build("teacher", make, **WORK).manifest["seconds"] >= 0.12


def test_what_was_asked_for_on_the_way_is_told_apart_and_costs_no_own_time(tmp_path: Path) -> None:
    """Also where it was there already: what an artifact took does not depend on who made its parts."""

    def slow(folder: Path) -> Mapping[str, Any]:
        time.sleep(0.3)
        return make(folder)

    def asking(store: Store) -> Callable[[Path], Mapping[str, Any]]:
        def ask(folder: Path) -> Mapping[str, Any]:
            store.build("cache", slow, **WORK)
            return make(folder)

        return ask

    first, later = Store(tmp_path), Store(tmp_path)
    distilled = first.build("distill", asking(first), **WORK)
    (cache,) = distilled.manifest["used"]
    assert cache.startswith("cache-")
    assert distilled.manifest["seconds"] < 0.3 <= distilled.costs[cache]["seconds"]
    again = later.build("distill", asking(later), **(WORK | {"seed": 2}))
    assert again.costs.keys() == {cache, again.path.name}
    assert again.costs[cache] == distilled.costs[cache]
    assert first.build("finetune", make, **WORK).manifest["used"] == {}


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def cut_manifest(path: Path) -> None:
    manifest = path.parents[1] / MANIFEST
    manifest.write_text(manifest.read_text()[:-5])


def change_manifest(
    change: Callable[[dict[str, Any]], object], *, sealed_before: bool = True
) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        manifest = json.loads((path.parents[1] / MANIFEST).read_text())
        if not sealed_before:  # as they were written before there were seals
            del manifest[SEAL]
        change(manifest)
        (path.parents[1] / MANIFEST).write_text(json.dumps(manifest))

    return damage


DAMAGES = {
    "flipped": flip,
    "missing": Path.unlink,
    "manifest": cut_manifest,
    "NULs": lambda path: (path.parents[1] / MANIFEST).write_bytes(bytes(4096)),
    "nested": lambda path: (path.parents[1] / MANIFEST).write_text("[" * 100_000),
    "a score typed in": change_manifest(lambda manifest: manifest["metrics"].update(dice=0.987)),
    "no files": change_manifest(lambda manifest: manifest["files"].clear(), sealed_before=False),
    "another digest": change_manifest(lambda manifest: manifest.update(digest="0" * 64), sealed_before=False),
    "another file": change_manifest(
        lambda manifest: manifest["files"].update({"model.json": "0" * 64}), sealed_before=False
    ),
    "other inputs": change_manifest(lambda manifest: manifest["inputs"].update(data="abd"), sealed_before=False),
    "another artifact's": change_manifest(
        lambda manifest: manifest.update(identify("teacher", **{**WORK, "seed": 9})), sealed_before=False
    ),
}


def test_manifests_from_before_there_were_seals_are_taken(tmp_path: Path) -> None:
    first = Store(tmp_path).build("teacher", make, **WORK)
    change_manifest(lambda manifest: None, sealed_before=False)(first.path / "sub" / "weights.bin")
    assert Store(tmp_path).build("teacher", refuse, **WORK).metrics == {"dice": 0.5}


def test_what_is_damaged_is_not_read(tmp_path: Path) -> None:
    made = Store(tmp_path).build("teacher", make, **WORK)
    assert whole(made.path, "Make it again.") == made
    flip(made.path / "sub" / "weights.bin")
    with pytest.raises(UserError, match=r"teacher-\w+ is damaged \(sub/weights.bin has changed\). Make it again."):
        whole(made.path, "Make it again.")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_moved_aside_and_mended(
    tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    first = Store(tmp_path).build("teacher", make, **WORK)
    digest = first.digest
    damage(first.path / "sub" / "weights.bin")
    mended = Store(tmp_path).build("teacher", make, **WORK)
    assert (mended.path, mended.digest) == (first.path, digest)
    assert len(list(tmp_path.glob(f"{first.path.name}.damaged-*"))) == 1
    assert f"{first.path.name} is damaged" in capsys.readouterr().err


def test_threads_that_need_the_same_build_it_once(tmp_path: Path) -> None:
    began = []

    def slow(folder: Path) -> Mapping[str, Any]:
        began.append(folder)
        time.sleep(0.2)
        return make(folder)

    found: list[Artifact] = []
    threads = [
        threading.Thread(target=lambda: found.append(Store(tmp_path).build("teacher", slow, **WORK))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(began) == 1
    assert {artifact.path for artifact in found} == {tmp_path / began[0].name.removesuffix(".partial")}


def _build_and_count(folder: Path, count: Path, barrier: Any) -> None:
    def counted(partial: Path) -> Mapping[str, Any]:
        with count.open("a") as file:
            file.write("x")
        time.sleep(0.1)
        return make(partial)

    barrier.wait()
    Store(folder).build("teacher", counted, **WORK)


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_need_the_same_build_it_once(tmp_path: Path, damaged: bool) -> None:
    """Also where all find the same damage at once."""
    if damaged:
        flip(Store(tmp_path / "store").build("teacher", make, **WORK).path / "model.json")
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    arguments = (tmp_path / "store", tmp_path / "count", barrier)
    processes = [context.Process(target=_build_and_count, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "x"


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tskd.artifacts import Store\n"
        "def make(folder):\n"
        "    (folder / 'half').write_text('half'); print('ready', flush=True); time.sleep(60)\n"
        f"Store(Path(sys.argv[1])).build('teacher', make, **{WORK!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (Store(tmp_path).build("teacher", make, **WORK).path / "half").exists()


def test_a_store_remembers_what_it_gave(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = store.build("teacher", make, **WORK)
    assert store.used == {artifact.path.name: artifact}


def test_a_store_reads_the_files_of_what_it_gave_only_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = store.build("teacher", make, **WORK)
    flip(artifact.path / "sub" / "weights.bin")  # would be noticed if it were read again
    assert store.build("teacher", refuse, **WORK) is artifact


def test_a_stage_that_the_disk_refuses_says_where_it_worked(tmp_path: Path) -> None:
    def full(folder: Path) -> Mapping[str, Any]:
        with naming(folder / "weights.safetensors"):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def unnamed(folder: Path) -> Mapping[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")  # as ``write`` says it

    for number, (work, name) in enumerate(((full, "weights.safetensors"), (unnamed, ""))):
        with pytest.raises(OSError, match="No space left on device") as caught:
            Store(tmp_path / str(number)).build("teacher", work, **WORK)
        assert Path(caught.value.filename).relative_to(tmp_path / str(number)).parts[1:] == ((name,) if name else ())


def test_canonical_json_is_one_text_a_value() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert json.loads(canonical_json({"path": Path("x/y")})) == {"path": "x/y"}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_that_of_the_block() -> None:
    with measured() as large:
        block = bytearray(200 * 2**20)
        block[:: 2**12] = b"x" * len(block[:: 2**12])
        del block
    with measured() as small:
        pass
    assert large["peak_memory_mb"] - small["peak_memory_mb"] > 100
    assert small["peak_memory_mb"] <= peak_memory_mb() + 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_of_a_block_is_not_that_of_a_block_within() -> None:
    def hold(megabytes: int) -> None:
        block = bytearray(megabytes * 2**20)
        block[:: 2**12] = b"x" * len(block[:: 2**12])

    with measured() as nothing:
        pass
    with measured() as outer, measured() as inner:
        hold(200)
    with measured() as early:
        hold(200)
        with measured() as late:
            pass
    base = nothing["peak_memory_mb"]
    larger = [block["peak_memory_mb"] - base > 100 for block in (inner, outer, early, late)]
    assert larger == [True, False, True, False]


def test_peak_memory_of_a_gpu_is_that_of_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU here: the counters are those that torch would keep."""
    held = {"now": 300 * 2**20, "peak": 900 * 2**20}
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        get_device_name=lambda: "A100",
        max_memory_allocated=lambda: held["peak"],
        reset_peak_memory_stats=lambda: held.update(peak=held["now"]),
    )
    torch = SimpleNamespace(cuda=cuda, get_float32_matmul_precision=lambda: "high")
    monkeypatch.setitem(sys.modules, "torch", torch)
    with measured() as usage:
        held["peak"] = 500 * 2**20
    with measured() as next_one:
        pass
    assert (usage["peak_gpu_memory_mb"], next_one["peak_gpu_memory_mb"]) == (500, 300)
    assert environment()["device"] == "A100, TF32", "what rounds its products is told"


def test_a_folder_without_a_manifest_is_moved_aside_and_made_again(tmp_path: Path) -> None:
    """As a copy that was stopped half-way leaves it: without this the rename at the end of the work would fail."""
    made = Store(tmp_path).build("teacher", make, **WORK)
    (made.path / MANIFEST).unlink()
    again = Store(tmp_path).build("teacher", make, **WORK)
    assert again.digest
    (aside,) = tmp_path.glob("*.damaged-*")
    assert (aside / "model.json").is_file()


def test_checkpoints_stay_until_the_manifest_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def training(folder: Path) -> Mapping[str, Any]:
        (folder / CHECKPOINTS).mkdir(exist_ok=True)
        (folder / CHECKPOINTS / "last").write_text("step 99")
        time.sleep(0.06)
        return make(folder)

    def killed() -> dict[str, Any]:
        raise KeyboardInterrupt

    store = Store(tmp_path)
    monkeypatch.setattr("tskd.artifacts.environment", killed)
    with pytest.raises(KeyboardInterrupt):
        store.build("teacher", training, **WORK)
    (partial,) = tmp_path.glob("*.partial")
    assert (partial / CHECKPOINTS / "last").is_file()
    monkeypatch.undo()
    artifact = store.build("teacher", training, **WORK)
    assert artifact.manifest["seconds"] >= 0.12, "the time of the first attempt counts, as its steps do"
    assert sorted(path.name for path in artifact.path.iterdir()) == [MANIFEST, TRAINING_LOG, "model.json", "sub"]
    assert not any(name.startswith(CHECKPOINTS) for name in artifact.manifest["files"])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
def test_a_manifest_that_cannot_be_read_is_no_finished_artifact(tmp_path: Path, content: bytes) -> None:
    made = Store(tmp_path).build("teacher", make, **WORK)
    digest = made.digest
    assert finished(made.path) is not None
    (made.path / MANIFEST).write_bytes(content)
    assert finished(made.path) is None
    assert find_by_digest(tmp_path, "teacher", digest) is None


def test_what_was_moved_aside_is_not_found(tmp_path: Path) -> None:
    made = Store(tmp_path).build("teacher", make, **WORK)
    shutil.copytree(made.path, tmp_path / f"{made.path.name}.damaged-1")
    assert [artifact.path for artifact in finished_in(tmp_path)] == [made.path]
