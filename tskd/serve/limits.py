"""What one server takes on, and how it says no."""

from __future__ import annotations

from dataclasses import dataclass, field

from tskd.data.memory_files import MemoryFolder


@dataclass(frozen=True)
class Limits:
    """What a request may cost, by which memory is bounded.

    It holds ``(at_once + waiting) * upload`` bytes of uploads, ``at_once`` times ``unpacked`` bytes with as many of
    labels and what decoding and the network take, and ``open_bytes``.
    """

    upload: int = 128 * 2**20
    """Bytes of a request."""
    unpacked: int = 512 * 2**20
    """Bytes of a ZIP file or a packed NIfTI when unpacked, and voxels of a volume."""
    pixels: int = 25_000_000
    """Of an image or a slice."""
    slices: int = 1000
    seconds: float = 120.0
    """For the upload, and again for the work."""
    at_once: int = 2
    waiting: int = 8
    views: int = 16
    """Files that stay open for the page."""
    view_minutes: float = 30.0
    """Of not being looked at, after which one is forgotten."""

    @property
    def open_bytes(self) -> int:
        """Of the files that stay open, labels included: room for the largest one. The newest stays in any case."""
        return 2 * self.unpacked


@dataclass
class Refused(Exception):
    """A request that is not done: the status of HTTP, and why in one sentence that names no path and no patient."""

    status: int
    why: str
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.why


def without_paths(text: str, folder: MemoryFolder) -> str:
    """Return a reader's message about files in memory without the names that they have here."""
    names = sorted(folder.contents, key=len, reverse=True)
    for name in names:
        text = text.replace(f"{folder}/{name}: ", "the file: " if len(names) == 1 else f"{name}: ")
        text = text.replace(f"{folder}/{name}", "the file" if len(names) == 1 else name)
    text = text.replace(f"{folder}: ", "").replace(str(folder), "the upload")
    return text[:1].upper() + text[1:]
