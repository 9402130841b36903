"""Finished work on disk: a folder with a manifest written last, named by everything its content depends on."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from tskd.console import warn
from tskd.errors import UserError
from tskd.extras import version_of
from tskd.machine.disk import file_sha256, naming, write_json
from tskd.machine.memory import (
    cores,
    give_back_freed_memory,
    gpu_in_use,
    peak_gpu_memory_mb,
    peak_memory_mb,
    reset_peaks,
)

ARTIFACTS, RUN_FILE = "artifacts", "run.json"
"""In an output folder: the artifacts, and what a finished run found."""
MANIFEST = "manifest.json"
CHECKPOINTS = "checkpoints"
"""Folder of a stage's resumable state; it is removed when the stage is finished."""
TRAINING_LOG = "metrics.jsonl"
"""Log of a training; it holds times, so it is not part of the digest."""
MADE_FROM = ("start", "teacher", "masks")
"""Inputs that a model's training went through; the data and the transfer set are the same for every method."""
_CLOCK = "clock.json"
_LIBRARIES = ("torch", "timm", "transformers", "peft", "diffusers", "monai", "numpy", "onnxruntime")

Make = Callable[[Path], Mapping[str, Any]]
"""A stage's work: fills the folder it is given and returns its metrics."""
Costs = Mapping[str, Mapping[str, float]]
"""Artifact's name -> each of ``COSTS``."""
COSTS = ("seconds", "peak_memory_mb", "peak_gpu_memory_mb")
SEAL = "seal"
"""Key of a JSON file whose value is the sha256 of all the others: what was changed by hand, or on the disk, shows."""
_IDENTITY = ("stage", "config", "inputs", "seed", "version")
ENVIRONMENT = ("python", "system", "device", "libraries", "git_commit")
"""What every manifest says of the versions and machine that made it."""


@dataclass(frozen=True)
class Artifact:
    """A finished folder."""

    path: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        return manifest

    @property
    def digest(self) -> str:
        """Sha256 over the names and contents of its files, logs left out."""
        return str(self.manifest["digest"])

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.manifest["metrics"])

    @property
    def costs(self) -> Costs:
        """What it took to make it, and what it took to make the artifacts that were asked for on the way."""
        own = {name: self.manifest.get(name, 0.0) for name in COSTS}
        return {**self.manifest.get("used", {}), self.path.name: own}

    @property
    def environment(self) -> dict[str, Any]:
        """What :func:`environment` said where it was made."""
        return {name: self.manifest.get(name) for name in ENVIRONMENT}


@dataclass(frozen=True)
class Processes:
    """This process's place among those that train together."""

    rank: int = 0
    barrier: Callable[[], object] = lambda: None
    """Returns when all processes have called it."""


class Builder(Protocol):
    """Answers requests for artifacts."""

    @property
    def root(self) -> Path:
        """The folder that they lie in."""
        ...

    @property
    def used(self) -> Mapping[str, Artifact]:
        """Every artifact that was asked for, by folder name."""
        ...

    def build(
        self,
        stage: str,
        make: Make,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        seed: int,
        version: int,
        together: bool = False,
    ) -> Artifact:
        """Return the artifact of a stage; ``inputs`` maps names to content digests."""
        ...


@dataclass
class _Making:
    """What was asked for while an artifact is made: its time is not the artifact's own."""

    costs: dict[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float = 0.0


class Store:
    """The artifacts of one output folder; equal work is found instead of done again."""

    def __init__(self, root: Path, processes: Processes | None = None) -> None:
        self.root = root
        self.processes = processes or Processes()
        self.used: dict[str, Artifact] = {}
        self._making: list[_Making] = []

    def build(
        self,
        stage: str,
        make: Make,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        seed: int,
        version: int,
        together: bool = False,
    ) -> Artifact:
        """Return the artifact of a stage, computed now if it is not there yet.

        ``inputs`` maps names to content digests. ``make`` works in ``<name>.partial``, which an interrupted run leaves
        behind and the next one finds again. Two runs that need the same artifact build it once. Of several processes
        of one run the first computes and the others wait; with ``together`` all call ``make`` on the same folder, and
        those that are not the first must not write results.
        """
        identity = identify(stage, config=config, inputs=inputs, seed=seed, version=version)
        path = artifact_path(self.root, identity)
        began = time.monotonic()
        if path.name not in self.used:
            if self.processes.rank == 0:
                self._find_or_make(path, make, identity)
            else:
                self._accompany(path, make if together else None)
            self.used[path.name] = Artifact(path)
        artifact = self.used[path.name]
        if self._making:
            self._making[-1].costs |= artifact.costs
            self._making[-1].seconds += time.monotonic() - began
        return artifact

    def _find_or_make(self, path: Path, make: Make, identity: dict[str, Any]) -> None:
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / path.name):  # finding too: two runs must not both move a damaged one aside
            found = self._find(path)
            self.processes.barrier()
            if not found:
                self._making.append(_Making())
                try:
                    _make(path, make, identity, self._making[-1])
                finally:
                    self._making.pop()
        self.processes.barrier()

    def _accompany(self, path: Path, make: Make | None) -> None:
        """Do what a process does that is not the first: wait until it has looked, help, wait until it is done."""
        self.processes.barrier()
        if make is not None and not path.exists():
            make(partial_path(path))
        self.processes.barrier()

    def _find(self, path: Path) -> bool:
        if not path.exists():
            partial_path(path).mkdir(parents=True, exist_ok=True)
            return False
        damaged = next(find_damage(Artifact(path)), None)
        if damaged is None:
            return True
        aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
        path.rename(aside)
        warn(f"{path.name} is damaged ({damaged}); it was moved to {aside.name} and is computed again")
        partial_path(path).mkdir(exist_ok=True)
        return False


def identify(
    stage: str, *, config: Mapping[str, Any], inputs: Mapping[str, str], seed: int, version: int
) -> dict[str, Any]:
    """Return all that an artifact depends on, with the fingerprint of it."""
    identity = {"stage": stage, "config": dict(config), "inputs": dict(inputs), "seed": seed, "version": version}
    return identity | {"fingerprint": json_sha256(identity)}


def _digest(files: Mapping[str, str]) -> str:
    """Return the digest of an artifact's content; its log holds times and does not count."""
    content = {name: sha256 for name, sha256 in files.items() if name != TRAINING_LOG}
    return json_sha256(content)


def artifact_path(root: Path, identity: Mapping[str, Any]) -> Path:
    """Return the folder of an artifact."""
    return root / f"{identity['stage']}-{identity['fingerprint'][:12]}"


def find_by_digest(root: Path, stage: str, digest: str) -> Artifact | None:
    """Return the finished artifact of a stage in a store's folder that has these contents."""
    return next((artifact for artifact in finished_in(root, stage) if artifact.digest == digest), None)


def finished_in(root: Path, stage: str = "*") -> list[Artifact]:
    """Return the finished artifacts of a store's folder, not what is under way or was moved aside."""
    folders = (path.parent for path in sorted(root.glob(f"{stage}-*/{MANIFEST}")) if "." not in path.parent.name)
    return [artifact for folder in folders if (artifact := finished(folder))]


def finished(path: Path) -> Artifact | None:
    """Return the artifact in a folder; None where its manifest is missing or cannot be read."""
    artifact = Artifact(path)
    try:
        readable = isinstance(artifact.manifest["files"], dict) and bool(artifact.digest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return artifact if readable else None


def partial_path(path: Path) -> Path:
    """Return where an artifact is made before it gets its name."""
    return path.with_name(f"{path.name}.partial")


def find_damage(artifact: Artifact) -> Iterator[str]:
    """Yield a line for every file of the artifact that is missing or differs from the manifest, first the manifest."""
    if said := manifest_damage(artifact):
        yield said
        return
    for name, digest in artifact.manifest["files"].items():
        path = artifact.path / name
        if not path.is_file():
            yield f"{name} is missing"
        elif file_sha256(path) != digest:
            yield f"{name} has changed"


def manifest_damage(artifact: Artifact) -> str | None:
    """Return what is wrong with an artifact's manifest, its other files not looked at; None where nothing is.

    Its fingerprint has to follow from what it says it was made from, its folder's name from the fingerprint, its digest
    from its list of files, and its seal from all of it. Manifests from before there were seals are taken without one:
    a seal tells what was changed by accident or in passing, it is not a signature.
    """
    whole = finished(artifact.path)
    if whole is None:
        return f"{MANIFEST} is missing or cannot be read"
    manifest = whole.manifest
    if not seal_holds(manifest):
        return f"{MANIFEST} was changed after it was written: its seal does not fit"
    identity = {name: manifest.get(name) for name in _IDENTITY}
    if manifest.get("fingerprint") != json_sha256(identity):
        return f"{MANIFEST} was changed: its fingerprint is not that of what it was made from"
    if artifact.path.name != artifact_path(artifact.path.parent, manifest).name:
        return f"{MANIFEST} is that of another artifact"
    if manifest["digest"] != _digest(manifest["files"]):
        return f"{MANIFEST} was changed: its digest is not that of its list of files"
    return None


def whole(path: Path, remedy: str) -> Artifact:
    """Return the artifact in a folder, every file of it verified; UserError names what is damaged, then the remedy."""
    artifact = Artifact(path)
    if damage := next(find_damage(artifact), None):
        raise UserError(f"{path} is damaged ({damage}). {remedy}")
    return artifact


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON's view of a mapping with its seal."""
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return plain | {SEAL: json_sha256(plain)}


def seal_holds(value: Mapping[str, Any]) -> bool:
    """Say whether what was read is what :func:`sealed` gave; true without a seal."""
    rest = {name: one for name, one in value.items() if name != SEAL}
    return value.get(SEAL) in (None, sealed(rest)[SEAL])


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the lines of a training's log; what a kill or a power cut has torn or filled with NULs is left out."""
    path = folder / TRAINING_LOG
    if not path.is_file():
        return []
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [line for text in lines if (line := _log_line(text))]


def _log_line(text: str) -> dict[str, float] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    numbers = isinstance(line, dict) and "step" in line and all(isinstance(one, int | float) for one in line.values())
    return line if numbers else None


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def json_sha256(value: Any) -> str:
    """Return the sha256 of a value's one JSON text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def environment() -> dict[str, Any]:
    """Return ``ENVIRONMENT``: versions of Python and libraries, system, device, git commit of the working folder."""
    installed = {name: version_of(name) for name in ("tskd", *_LIBRARIES)}
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": _device(),
        "libraries": {name: version for name, version in installed.items() if version},
        "git_commit": _git_commit(),
    }


_measuring: list[dict[str, float]] = []
"""What open blocks of :func:`measured` have used so far, the innermost last."""


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Measure the block: ``seconds`` and the peaks of this process's memory are filled in at its end.

    Its peaks are its own: a block within, an artifact that is made on the way, has them for itself.
    """
    if _measuring:
        _note_peaks(_measuring[-1])
    usage: dict[str, float] = {"peak_memory_mb": 0.0, "peak_gpu_memory_mb": 0.0}
    _measuring.append(usage)
    _forget_peaks()
    began = time.monotonic()
    try:
        yield usage
    finally:
        usage["seconds"] = round(time.monotonic() - began, 2)
        _note_peaks(usage)
        _measuring.pop()
        if _measuring:
            _forget_peaks()


def _forget_peaks() -> None:
    give_back_freed_memory()  # what another stage held is not this one's
    reset_peaks()


def _note_peaks(usage: dict[str, float]) -> None:
    usage["peak_memory_mb"] = max(usage["peak_memory_mb"], peak_memory_mb())
    usage["peak_gpu_memory_mb"] = max(usage["peak_gpu_memory_mb"], peak_gpu_memory_mb())


def _make(path: Path, make: Make, identity: dict[str, Any], making: _Making) -> None:
    partial = partial_path(path)
    (partial / MANIFEST).unlink(missing_ok=True)  # of an attempt that was killed just before the rename
    begun = any(partial.iterdir())
    try:
        with naming(partial), _clock(partial, making), measured() as usage:
            metrics = dict(make(partial))
    except UserError:
        if not begun and not (partial / CHECKPOINTS).exists():  # a refusal leaves nothing; work that was done stays
            shutil.rmtree(partial)
        raise
    finally:
        _drop_hidden(partial)
    names = (file.relative_to(partial) for file in partial.rglob("*") if file.is_file())
    kept = sorted(name for name in names if name.parts[0] not in (CHECKPOINTS, _CLOCK))
    files = {name.as_posix(): file_sha256(partial / name) for name in kept}
    manifest = identity | {"digest": _digest(files), "files": files, "metrics": metrics, "used": making.costs}
    write_json(
        partial / MANIFEST, sealed(manifest | usage | {"seconds": _seconds_so_far(partial / _CLOCK)} | environment())
    )
    (partial / _CLOCK).unlink()  # not before, and checkpoints neither: an attempt killed above goes on from them
    shutil.rmtree(partial / CHECKPOINTS, ignore_errors=True)
    partial.rename(path)


def _drop_hidden(folder: Path) -> None:
    """Remove temporary files and folders, which are hidden: a killed attempt left them, and they are not a result."""
    for path in [path for path in folder.rglob("*") if path.name[0] == "."]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # gone with its folder


@contextmanager
def _clock(partial: Path, making: _Making) -> Iterator[None]:
    """Add up the artifact's own seconds over all attempts that ended by themselves; a killed attempt's are lost."""
    path = partial / _CLOCK
    before = _seconds_so_far(path)
    began = time.monotonic()
    try:
        yield
    finally:
        write_json(path, {"seconds": round(before + time.monotonic() - began - making.seconds, 2)})


def _seconds_so_far(clock: Path) -> float:
    """Return what earlier attempts took; 0 where there were none, or a power cut left nothing that can be read."""
    try:
        return float(json.loads(clock.read_text(encoding="utf-8"))["seconds"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0.0


def _device() -> str:
    if gpu := gpu_in_use():
        torch = sys.modules["torch"]
        return f"{gpu.get_device_name()}{'' if torch.get_float32_matmul_precision() == 'highest' else ', TF32'}"
    threads = f"{sys.modules['torch'].get_num_threads()} threads of " if "torch" in sys.modules else ""
    return f"CPU, {threads}{cores()} cores"


def _git_commit() -> str | None:
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
