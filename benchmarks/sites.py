"""Write a column `site` into the split.csv of a data folder, for `data.where: {site: ...}`.

    python benchmarks/sites.py DATA --by colour      # grey, colour: by how far the three colours differ
    python benchmarks/sites.py DATA --by size        # small, large: by the number of pixels, as even as can be
    python benchmarks/sites.py DATA --by case --parts 4   # site1 to site4: cases dealt out at random

A case (patient or volume) is never cut: where its images differ, most of them decide. Other columns stay as they are. A
data set whose split.csv has such a column already, whatever its name, needs none of this.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tskd.data.layouts import Dataset, open_dataset
from tskd.data.phantoms.write import SITE
from tskd.errors import UserError
from tskd.seeding import numpy_generator
from tskd.types import Record

LEAST_COLOUR = 8.0
"""Mean distance of the largest to the smallest colour, of 255, from which an image is coloured: JPEG gives grey ones
less."""


def main() -> None:
    """Write the column and say how many images each site has; exit 2 with one message where that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--by", choices=sorted(WAYS), required=True)
    parser.add_argument("--parts", type=int, default=4, help="number of sites of --by case")
    parser.add_argument("--seed", type=int, default=0, help="of --by case")
    options = parser.parse_args()
    try:
        dataset = open_dataset(options.data, "folder")
        site_of = WAYS[options.by](dataset, options.parts, options.seed)
        write_sites(options.data / "split.csv", dataset.records, site_of)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for site, count in sorted(Counter(site_of[record.case] for record in dataset.records).items()):
        print(f"{site}: {count} images")


def by_colour(dataset: Dataset, parts: int, seed: int) -> Mapping[str, str]:
    """Return the site of each case: ``grey`` or ``colour``."""

    def site(record: Record) -> str:
        image = dataset.read_image(record).astype(np.int16)
        return "colour" if np.ptp(image, axis=-1).mean() >= LEAST_COLOUR else "grey"

    return of_cases(dataset.records, site)


def by_size(dataset: Dataset, parts: int, seed: int) -> Mapping[str, str]:
    """Return the site of each case: ``small`` up to some number of pixels, ``large`` above, as even as can be."""
    pixels = {record.id: dataset.read_image(record)[..., 0].size for record in dataset.records}
    counts = np.array(list(pixels.values()))
    limit = min(np.unique(counts)[:-1], key=lambda size: abs((counts <= size).mean() - 0.5), default=None)
    if limit is None:
        raise UserError(f"{dataset.root}: all images have {counts[0]} pixels: --by size tells none apart.")
    return of_cases(dataset.records, lambda record: "small" if pixels[record.id] <= limit else "large")


def by_case(dataset: Dataset, parts: int, seed: int) -> Mapping[str, str]:
    """Return the site of each case: one of ``parts``, as even in cases as can be."""
    cases = sorted({record.case for record in dataset.records})
    if not 2 <= parts <= len(cases):
        raise UserError(f"--parts {parts}: there are {len(cases)} cases. Ask for 2 to {len(cases)} sites.")
    order = numpy_generator(seed, "sites").permutation(len(cases))
    return {cases[index]: f"site{1 + place % parts}" for place, index in enumerate(order)}


WAYS: dict[str, Callable[[Dataset, int, int], Mapping[str, str]]] = {
    "colour": by_colour,
    "size": by_size,
    "case": by_case,
}


def of_cases(records: Sequence[Record], site: Callable[[Record], str]) -> Mapping[str, str]:
    """Return the site of each case: that of most of its images, of equally many the first by name."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        votes[record.case][site(record)] += 1
    return {case: min(found, key=lambda name: (-found[name], name)) for case, found in votes.items()}


def write_sites(path: Path, records: Sequence[Record], site_of: Mapping[str, str]) -> None:
    """Write split.csv with the column, whole or not at all; images that had no line get one."""
    lines: list[dict[str, str]] = []
    columns = ["id", "split"]
    if path.exists():
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lines, columns = list(reader), list(reader.fieldnames or columns)
    if SITE in columns:
        raise UserError(f"{path}: has a column {SITE} already. Use it, or take it out first.")
    known = {line["id"].strip(): line for line in lines}
    for record in records:
        known.setdefault(record.id, {"id": record.id, "split": record.split or ""})[SITE] = site_of[record.case]
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, SITE], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(known.values())
    partial.replace(path)


if __name__ == "__main__":
    main()
