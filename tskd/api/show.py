"""How results show themselves in a notebook: tables and pictures as HTML that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    from PIL import Image


def image_html(image: Image.Image, text: str) -> str:
    """Return a picture as an element with its pixels inside; ``text`` is read to who cannot see it."""
    content = io.BytesIO()
    image.save(content, "PNG")
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{text}" style="max-width:100%"/>'


class Table(tuple[dict[str, Any], ...]):
    """Rows of a small table, each its columns by name; ``pandas.DataFrame(table)`` makes one to compute with."""

    __slots__ = ()

    def __repr__(self) -> str:
        lines = self._lines()
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)

    def _repr_html_(self) -> str:
        head, *rows = [[html.escape(cell) for cell in line] for line in self._lines()]
        columns = "".join(f"<th>{name}</th>" for name in head)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"

    def _lines(self) -> list[list[str]]:
        shown = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in self]
        return [list(self[0]), *shown] if self else [[]]


def table_html(table: pandas.DataFrame) -> str:
    """Return a table with numbers to three places, names escaped."""
    return table.to_html(index=False, float_format="{:.3f}".format, border=0, na_rep="")
