"""What a page is made of: sections of blocks. The template draws each block by its ``kind``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Table:
    """Cells of text; the first column names the row, the others are set as numbers unless ``texts`` names them."""

    kind: ClassVar[str] = "table"
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    note: str = ""
    strong: frozenset[int] = frozenset()
    """Rows set in bold."""
    texts: frozenset[int] = frozenset({0})
    """Columns of words."""


@dataclass(frozen=True)
class Chart:
    """A drawing; ``svg`` takes its colours from the page."""

    svg: str
    title: str
    alt: str
    """What it shows, for those who cannot see it."""


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a small drawing or a colour, and what it stands for."""

    title: str
    svg: str = ""
    colour: str = ""
    """CSS colour of a plain patch."""
    line: str = ""
    """CSS colour of the line around it."""


@dataclass(frozen=True)
class Charts:
    """Charts side by side where there is room, with one legend for all."""

    kind: ClassVar[str] = "charts"
    charts: tuple[Chart, ...]
    keys: tuple[Key, ...] = ()
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """An image in the page itself."""

    source: str
    """Data URI."""
    width: int
    height: int
    caption: str


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side where there is room."""

    kind: ClassVar[str] = "pictures"
    pictures: tuple[Picture, ...]
    title: str = ""
    note: str = ""
    keys: tuple[Key, ...] = ()
    large: bool = False
    """A picture that is a sheet of many."""


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    facts: tuple[tuple[str, str], ...]
    title: str = ""


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""


@dataclass(frozen=True)
class Points:
    """Sentences, one below the other."""

    kind: ClassVar[str] = "points"
    points: tuple[str, ...]


Block = Table | Charts | Pictures | Facts | Code | Points


@dataclass(frozen=True)
class Section:
    """A heading, a sentence that says what is below it, and the blocks."""

    name: str
    """Its address in the page."""
    title: str
    lead: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """Everything that a report says."""

    title: str
    kicker: str
    """What was done, in a few words above the title."""
    verdict: str
    caveat: str
    """What the verdict does not say."""
    sections: tuple[Section, ...]
    footnote: str = ""


def section(name: str, title: str, lead: str, blocks: Iterable[Block | None]) -> Section | None:
    """Return the section, or None where none of its blocks has anything to show."""
    kept = tuple(block for block in blocks if block is not None and _shows_something(block))
    return Section(name, title, lead, kept) if kept else None


def _shows_something(block: Block) -> bool:
    match block:
        case Table():
            return bool(block.rows)
        case Charts():
            return bool(block.charts)
        case Pictures():
            return bool(block.pictures or block.keys)
        case Facts():
            return bool(block.facts)
        case Code():
            return bool(block.text)
        case Points():
            return bool(block.points)
