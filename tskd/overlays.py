"""Pictures of predictions: the truth as a line, the prediction as a translucent area, in colours safe for all eyes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tskd.morphology import dilated, eroded
from tskd.types import UNLABELLED

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

ORANGE, SKY, GREEN, YELLOW = (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)
BLUE, VERMILLION, PURPLE = (0, 114, 178), (213, 94, 0), (204, 121, 167)
"""M. Okabe and K. Ito, Color Universal Design, 2008, without black."""
COLOURS: tuple[tuple[Colour, Colour], ...] = (
    (SKY, YELLOW),
    (ORANGE, BLUE),
    (GREEN, ORANGE),
    (YELLOW, GREEN),
    (BLUE, VERMILLION),
    (VERMILLION, SKY),
    (PURPLE, YELLOW),
)
"""Of the area that is predicted and of the line around the truth; class k has pair (k - 1) modulo 7. The two of a pair
differ in hue, and to eyes that lack one kind of cones as well."""

FILL = 0.42
"""Share of the class colour in the area of a prediction: the anatomy below stays readable."""
LEAST_TILE = 256
"""Smaller tiles are enlarged by a whole factor, so that titles fit and single pixels can be told apart."""
GAP = 8
LEGEND_LINE = 2
LINES = 150
"""So many lines beside each other would fill the longer side of an image."""
PAPER = (255, 255, 255)
INK = (32, 32, 32)


def class_colour(label: int) -> Colour:
    """Return the RGB colour of areas predicted as class ``label``, 1 to K."""
    return COLOURS[(label - 1) % len(COLOURS)][0]


def truth_colour(label: int) -> Colour:
    """Return the RGB colour of the line around what truly is of class ``label``, 1 to K."""
    return COLOURS[(label - 1) % len(COLOURS)][1]


def draw_overlay(
    image: np.ndarray, mask: np.ndarray | None, prediction: np.ndarray | None, *, classes: int, enlarge: int = 1
) -> np.ndarray:
    """Return the image (H·e, W·e, 3) uint8 with the prediction as areas and the mask as contours.

    ``image`` is (H, W, 3) uint8, ``mask`` and ``prediction`` (H, W) class indices; either may be None. ``enlarge``
    repeats pixels e times before contours are drawn, so that lines stay thin on small images. A contour has
    the class's second colour and a dark edge outside it, visible on every background; unlabelled pixels are darkened.
    Raises ValueError when shapes differ.
    """
    for one in (mask, prediction):
        if one is not None and one.shape != image.shape[:2]:
            raise ValueError(f"the image is {image.shape[:2]}, a map of classes to draw on it {one.shape}")
    canvas = _repeat(image, enlarge).astype(np.float32)
    if prediction is not None:
        _fill_areas(canvas, _repeat(prediction, enlarge), classes)
    if mask is not None:
        mask = _repeat(mask, enlarge)
        canvas[mask == UNLABELLED] *= 0.4
        _draw_contours(canvas, mask, classes)
    return canvas.round().astype(np.uint8)


def overlay_panel(
    image: np.ndarray,
    mask: np.ndarray | None,
    predictions: Mapping[str, np.ndarray],
    *,
    title: str,
    class_names: Sequence[str],
) -> Image.Image:
    """Return one strip: the plain image with the truth's contours, then one overlay a named prediction, and a legend.

    Shapes as in :func:`draw_overlay`; ``class_names`` has one name a foreground class.
    """
    classes, enlarge = len(class_names), enlargement(image)
    first = "image" if mask is None else "image and truth"
    tiles = {first: draw_overlay(image, mask, None, classes=classes, enlarge=enlarge)}
    for name, prediction in predictions.items():
        tiles[name] = draw_overlay(image, mask, prediction, classes=classes, enlarge=enlarge)
    strip = contact_sheet([list(tiles.values())], titles=[list(tiles)], heading=title)
    return _stack([strip, legend(class_names, width=strip.width, truth=mask is not None)])


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]], *, titles: Sequence[Sequence[str]], heading: str = ""
) -> Image.Image:
    """Return tiles (H, W, 3) uint8 in a grid, each under its title, below an optional heading.

    ``titles`` has the shape of ``rows``. Tiles smaller than ``LEAST_TILE`` are enlarged by a whole factor and every
    tile is centred in a cell of the largest size; a title too long for its cell is cut with an ellipsis. Raises
    ValueError for an empty sheet or titles that do not match.
    """
    if not rows or not all(rows) or [len(row) for row in rows] != [len(row) for row in titles]:
        raise ValueError("a contact sheet needs at least one tile a row and one title a tile")
    tiles = [[Image.fromarray(_repeat(tile, enlargement(tile))) for tile in row] for row in rows]
    cell = max(tile.width for row in tiles for tile in row), max(tile.height for row in tiles for tile in row)
    font = _font(cell[0])
    band = _line_height(font) + GAP // 2
    columns = max(len(row) for row in tiles)
    top = GAP + (band + GAP // 2 if heading else 0)
    size = GAP + columns * (cell[0] + GAP), top + len(tiles) * (band + cell[1] + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP // 2), _shortened(heading, font, size[0] - 2 * GAP), fill=INK, font=font)
    for row, (row_tiles, row_titles) in enumerate(zip(tiles, titles, strict=True)):
        y = top + row * (band + cell[1] + GAP)
        for column, (tile, title) in enumerate(zip(row_tiles, row_titles, strict=True)):
            x = GAP + column * (cell[0] + GAP)
            draw.text((x, y), _shortened(title, font, cell[0]), fill=INK, font=font)
            sheet.paste(tile, (x + (cell[0] - tile.width) // 2, y + band + (cell[1] - tile.height) // 2))
    return sheet


def legend(class_names: Sequence[str], *, width: int, truth: bool = True) -> Image.Image:
    """Return a strip of the given width that names each class's colours and says what line and area mean."""
    font = _font(LEAST_TILE)
    line = _line_height(font)
    note = "line: truth, area: prediction" if truth else "area: prediction"
    entries = [*enumerate(class_names, 1), (0, note)]
    widths = [int(font.getlength(name)) + (line if label else 0) for label, name in entries]
    spots = _flow(widths, width=width, line=line + GAP // 2)
    strip = Image.new("RGB", (width, spots[-1][1] + line + GAP), PAPER)
    draw = ImageDraw.Draw(strip)
    for (label, name), (x, y) in zip(entries, spots, strict=True):
        if label:
            patch = (x, y + 2, x + line - 6, y + line - 4)
            draw.rectangle(patch, fill=class_colour(label), outline=INK)
            if truth:
                inner = (patch[0] + 1, patch[1] + 1, patch[2] - 1, patch[3] - 1)
                draw.rectangle(inner, outline=truth_colour(label), width=LEGEND_LINE)
        indent = x + (line if label else 0)
        draw.text((indent, y), _shortened(name, font, width - GAP - indent), fill=INK, font=font)
    return strip


def enlargement(image: np.ndarray) -> int:
    """Return the whole factor that brings the longer side of (H, W, ...) to about ``LEAST_TILE`` or more."""
    return max(1, round(LEAST_TILE / max(image.shape[:2])))


def _fill_areas(canvas: np.ndarray, prediction: np.ndarray, classes: int) -> None:
    for label in range(1, classes + 1):
        area = prediction == label
        canvas[area] = (1 - FILL) * canvas[area] + FILL * np.array(class_colour(label), dtype=np.float32)


def _draw_contours(canvas: np.ndarray, mask: np.ndarray, classes: int) -> None:
    """Draw lines of a ``LINES``-th of the longer side, inside the class, with a dark edge one pixel outside."""
    width = max(1, round(max(mask.shape) / LINES))
    regions = [(label, mask == label) for label in range(1, classes + 1)]
    edges = [region ^ dilated(region) for _, region in regions]
    canvas[np.any(edges, axis=0)] = 0
    for label, region in regions:
        inner = eroded(region, width)
        canvas[region & ~inner] = truth_colour(label)


def _repeat(pixels: np.ndarray, times: int) -> np.ndarray:
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _font(tile_width: int) -> Font:
    return ImageFont.load_default(size=min(20, max(13, tile_width // 18)))


def _line_height(font: Font) -> int:
    return int(font.getbbox("Ågj")[3]) + 2


def _shortened(text: str, font: Font, width: int) -> str:
    """Return the text, cut with an ellipsis to what fits ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    kept = next((n for n in range(len(text) - 1, 0, -1) if font.getlength(text[:n] + "…") <= width), 0)
    return text[:kept].rstrip() + "…"


def _flow(widths: Sequence[int], *, width: int, line: int) -> list[tuple[int, int]]:
    """Return the (x, y) of pieces set one after another like words, in lines of the given width and height."""
    spots: list[tuple[int, int]] = []
    x, y = GAP, 0
    for needed in widths:
        if x > GAP and x + needed > width - GAP:
            x, y = GAP, y + line
        spots.append((x, y))
        x += needed + 2 * GAP
    return spots


def _stack(strips: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (max(strip.width for strip in strips), sum(strip.height for strip in strips)), PAPER)
    y = 0
    for strip in strips:
        whole.paste(strip, (0, y))
        y += strip.height
    return whole
