"""How results show themselves in a notebook: tables and pictures as HTML that needs nothing else."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas
    from PIL import Image


def image_html(image: Image.Image, text: str) -> str:
    """Return a picture as an element with its pixels inside; ``text`` is read to who cannot see it."""
    content = io.BytesIO()
    image.save(content, "PNG")
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{text}" style="max-width:100%"/>'


def table_html(table: pandas.DataFrame) -> str:
    """Return a table with numbers to three places, names escaped."""
    return table.to_html(index=False, float_format="{:.3f}".format, border=0, na_rep="")
