"""What counts as data in a folder: one rule for layouts, ``check`` and ``predict``, and nothing left out in silence.

What systems and editors leave behind is no data (:func:`is_hidden`). Linked folders are followed, each folder is read
once. What could be data and cannot be looked at is a problem with a name; the rest is tallied.
"""

from __future__ import annotations

import errno
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from tskd.console import met
from tskd.data.memory_files import MemoryFolder
from tskd.data.reading import reading
from tskd.errors import UserError

__all__ = [
    "OTHER_TYPES",
    "Listing",
    "find_files",
    "id_of",
    "is_beside",
    "is_hidden",
    "plain",
    "readable",
    "shown",
    "tally",
]

_LEFT_BEHIND = frozenset(
    {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler"}
    | {"system volume information", "__macosx", "icon\r", "network trash folder", "temporary items"}
    | {"lost+found", "lost.dir", "__pycache__"}
    | {"@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"}
)
"""Names, lower case, by Windows, macOS, Linux, network drives (Synology, QNAP) and Python."""
_BEGINNINGS = (".", "~$", "~wrl", "thumbs.db:")
"""Hidden files of Unix and macOS (``._scan.nii``, ``.ipynb_checkpoints``, ``.~lock``), lock files of Office."""
_ENDINGS = ("~", ":zone.identifier")
"""Backups of editors; the mark of Windows on what was downloaded, as Linux shows it."""
OTHER_TYPES = "files of other types"
"""Why :attr:`Listing.others` are left out."""
_SHOWN = 5
_MAX_BESIDE = 2**26  # bytes of a table or of settings, a million lines: they are read as a whole
_JOINERS = "\u200c\u200d"  # spelling of Persian, Hindi and emoji: they hide nothing


@dataclass(frozen=True)
class Listing:
    """What a folder holds, each part in the order of its names."""

    files: tuple[Path, ...] = ()
    """Data."""
    others: tuple[Path, ...] = ()
    """Files of a kind that is not read here."""
    folders: tuple[Path, ...] = ()
    """Sub-folders that were not entered; none where the search is deep."""
    hidden: tuple[Path, ...] = ()
    """Files and folders that systems and editors leave behind."""
    linked_again: tuple[Path, ...] = ()
    """Links to a folder that is read by another way, a link into itself among them."""
    problems: tuple[tuple[Path, str], ...] = ()
    """What could be data and cannot be looked at, with reason and remedy."""


def is_hidden(name: str) -> bool:
    """Tell by its name whether a file or folder is what systems and editors leave behind."""
    name = name.lower()
    if name.startswith("#") and name.endswith("#"):  # what Emacs saves by itself
        return True
    return name in _LEFT_BEHIND or name.startswith(_BEGINNINGS) or name.endswith(_ENDINGS)


def find_files(folder: Path, known: Callable[[Path], bool] = lambda path: True, *, deep: bool = True) -> Listing:
    """Return the files below ``folder`` that ``known`` says are of a kind that is read, and everything left out.

    Hidden names below ``folder`` are passed over, not those above it. With ``deep=False`` sub-folders are not entered.
    ``known`` is asked for regular files alone. A folder that is not there is empty.
    """
    if isinstance(folder, MemoryFolder):
        return Listing(tuple(path for path in folder.files if known(path)))
    walk = _Walk(known, deep)
    if os.path.lexists(folder):
        walk.enter(folder)
    return walk.listing()


def is_beside(path: Path) -> bool:
    """Tell whether a file that says something about the data (a table, settings) is there.

    Raises :class:`UserError` where it is and cannot be read: a folder, a pipe, a broken link, or far too large.
    """
    if not os.path.lexists(path):
        return False
    if not path.is_file():
        what = "a broken link" if path.is_symlink() else "a folder, pipe or device"
        raise UserError(f"{path}: is {what}, not a file. Put the file there, or remove it.")
    if path.stat().st_size > _MAX_BESIDE:
        raise UserError(f"{path}: has more than {_MAX_BESIDE // 2**20} MB, which no data set needs. Write it anew.")
    return True


def tally(reason: str, paths: Collection[Path]) -> str:
    """Return how many files are left out for a reason, in words; those of :data:`OTHER_TYPES` with their endings."""
    if reason != OTHER_TYPES:
        return f"{len(paths)} {reason}"
    endings = Counter(path.suffix.lower() or "no ending" for path in paths)
    named = [shown(ending) for ending in sorted(endings, key=lambda one: (-endings[one], one))[:_SHOWN]]
    return f"{len(paths)} {reason} ({', '.join(named)}{', …' if len(endings) > _SHOWN else ''})"


def id_of(path: Path, folder: Path) -> str:
    """Return the path below ``folder`` without its ending, as names are compared: :func:`plain`."""
    return plain(path.relative_to(folder).with_suffix("").as_posix())


def plain(name: str) -> str:
    """Return a name as it is compared and kept: :func:`readable`, in NFC.

    macOS writes ``ü`` as two characters and most others as one, so image and mask from two machines differ otherwise.
    """
    return unicodedata.normalize("NFC", readable(name))


def readable(name: str) -> str:
    """Return a name that can be written as UTF-8: bytes of the name that are none are written out as ``\\xfc``."""
    return "".join(_written_out(character) if "\ud800" <= character <= "\udfff" else character for character in name)


def _written_out(surrogate: str) -> str:
    """Return what a surrogate stands for: a byte, as Python keeps those of a name, else itself."""
    byte = ord(surrogate) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else f"\\u{ord(surrogate):04x}"


def shown(name: str) -> str:
    """Return a name for people: :func:`plain`, with what a terminal would obey, and not show, written out as well."""
    return "".join(_visible(character) for character in plain(name))


def _visible(character: str) -> str:
    obeyed = unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") and character not in _JOINERS
    return character.encode("unicode_escape").decode() if obeyed else character


@dataclass
class _Walk:
    """One way through a folder: real folders first, then links, so that which way is taken does not depend on names."""

    known: Callable[[Path], bool]
    deep: bool
    files: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    linked_again: list[Path] = field(default_factory=list)
    problems: dict[Path, str] = field(default_factory=dict)
    _seen: set[tuple[int, int]] = field(default_factory=set)
    _links: list[Path] = field(default_factory=list)

    def enter(self, root: Path) -> None:
        self._links.append(root)
        while self._links:
            start = self._links.pop(0)
            if not self._is_new(start):
                self.linked_again.append(start)
                continue
            waiting = [start]
            while waiting:
                waiting += self._read(waiting.pop())
            self._links.sort(key=_order)

    def listing(self) -> Listing:
        def in_order(paths: list[Path]) -> tuple[Path, ...]:
            return tuple(sorted(paths, key=_order))

        return Listing(
            files=in_order(self.files),
            others=in_order(self.others),
            folders=in_order(self.folders),
            hidden=in_order(self.hidden),
            linked_again=in_order(self.linked_again),
            problems=tuple(sorted(self.problems.items(), key=lambda problem: _order(problem[0]))),
        )

    def _is_new(self, folder: Path) -> bool:
        try:
            status = folder.stat()
        except OSError:  # reading it says why
            return True
        place = (status.st_dev, status.st_ino)
        new = place not in self._seen
        self._seen.add(place)
        return new

    def _read(self, folder: Path) -> list[Path]:
        """Sort the entries of one folder; return the real folders in it."""
        folders: list[Path] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._sort(entry, Path(folder, entry.name), folders)
        except OSError as error:
            self.problems[folder] = _folder_problem(error, folder)
        return folders

    def _sort(self, entry: os.DirEntry[str], path: Path, folders: list[Path]) -> None:
        met(entry.name)
        if is_hidden(entry.name):
            self.hidden.append(path)
            return
        try:
            regular, folder = entry.is_file(), entry.is_dir()
            if not regular and not folder:
                entry.stat()  # raises where the link is broken
        except OSError as error:
            self._note_unreachable(error, path, link=entry.is_symlink())
            return
        if regular:
            self._take(path)
        elif not folder:
            self.problems[path] = "is not a file but a pipe, socket or device, which cannot be read. Remove it."
        elif not self.deep:
            self.folders.append(path)
        elif entry.is_symlink():
            self._links.append(path)
        elif self._is_new(path):
            folders.append(path)

    def _take(self, path: Path) -> None:
        try:
            with reading(path):
                known = self.known(path)
        except UserError as error:
            self.problems[path] = str(error).removeprefix(f"{path}: ")
            return
        (self.files if known else self.others).append(path)

    def _note_unreachable(self, error: OSError, path: Path, *, link: bool) -> None:
        if link:
            self.problems[path] = _link_problem(error)
        elif isinstance(error, PermissionError):  # nothing in the folder may be looked at: once for all of it
            self.problems[path.parent] = _folder_problem(error, path.parent)
        else:
            self.problems[path] = _folder_problem(error, path)


def _order(path: Path) -> tuple[str, Path]:
    return plain(path.as_posix()), path


def _folder_problem(error: OSError, folder: Path) -> str:
    if isinstance(error, PermissionError):
        return "the folder may not be read (permission denied). Allow it, or move the folder elsewhere."
    if folder.is_symlink() and not folder.exists():
        return _link_problem(error)
    if isinstance(error, FileNotFoundError):
        return "is not there any more; it was moved or removed meanwhile. Put it back, or start again."
    if isinstance(error, NotADirectoryError):
        return "is a file where a folder is expected. Move it elsewhere."
    return f"the folder cannot be read ({error.strerror}). Check the disk or network drive, and try again."


def _link_problem(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a link that leads round in a circle. Remove it, or link to the file itself."
    if isinstance(error, PermissionError):
        return "is a link to a place that may not be read (permission denied). Allow it, or remove the link."
    return "is a broken link: what it leads to is not there. Put that back, or remove the link."
