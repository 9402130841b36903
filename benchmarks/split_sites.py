"""Cut one data folder into folders of sites and a folder of shared images, to try a federation out on real images.

    python benchmarks/split_sites.py acdc DATA OUT       # by patient: site1 to site4 of unequal size, transfer
    python benchmarks/split_sites.py dsb2018 DATA OUT    # by kind of image: grey, colour, transfer

DATA is in the ``folder`` layout with a split.csv. Images are linked, not copied. Shared are the images, without masks,
of one patient in five, whom no site has; dsb2018 does not say whose its images are: there of one image in five.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

Row = Mapping[str, str]
SIZES = (0.4, 0.3, 0.2, 0.1)
"""Shares of the patients that site1 to site4 have: hospitals differ."""
SHARED = 0.2
"""Share of the patients, or images, that are set aside."""
COLUMNS = ("id", "split", "subject", "frame", "slice")


def by_patient(rows: Sequence[Row], rng: np.random.Generator) -> Callable[[Row], str]:
    """Return which site a row goes to: all of a patient to one."""
    patients = rng.permutation(sorted({row["subject"] for row in rows})).tolist()
    shared = round(SHARED * len(patients))
    ends = shared + np.round(np.cumsum(SIZES) * (len(patients) - shared)).astype(int)
    place = {patient: int(np.searchsorted(ends, number, side="right")) for number, patient in enumerate(patients)}
    order = {patient: number for number, patient in enumerate(patients)}
    return lambda row: "transfer" if order[row["subject"]] < shared else f"site{place[row['subject']] + 1}"


def by_modality(rows: Sequence[Row], rng: np.random.Generator) -> Callable[[Row], str]:
    """Return which site a row goes to: that of its kind, but for what is shared of each."""
    shared = {row["id"] for row in rows if rng.random() < SHARED}
    names = {"gray": "grey", "colour": "colour", "color": "colour"}
    return lambda row: "transfer" if row["id"] in shared else names[row["modality"]]


RULES = {"acdc": by_patient, "dsb2018": by_modality}


def split(data: Path, out: Path, rule: str, seed: int = 0) -> dict[str, int]:
    """Write the folders; return how many images each has."""
    with (data / "split.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    site_of = RULES[rule](rows, np.random.default_rng(seed))
    images, masks = ({path.stem: path for path in (data / kind).iterdir()} for kind in ("images", "masks"))
    counts: dict[str, int] = {}
    kept: dict[str, list[Row]] = {}
    for row in rows:
        site = site_of(row)
        link(images[row["id"]], out / site / "images")
        if site != "transfer" and row["id"] in masks:
            link(masks[row["id"]], out / site / "masks")
        kept.setdefault(site, []).append(row)
        counts[site] = counts.get(site, 0) + 1
    for site, its in kept.items():
        write_split(out / site / "split.csv", its)
    return dict(sorted(counts.items()))


def link(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file.name).unlink(missing_ok=True)
    (folder / file.name).symlink_to(file.resolve())


def write_split(path: Path, rows: Sequence[Row]) -> None:
    """Keep who and which slice an image is, not the data set's own split: each site draws one."""
    columns = [name for name in COLUMNS if name in rows[0]]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, "split": ""} for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rule", choices=RULES)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    for site, count in split(options.data, options.out, options.rule).items():
        print(f"{site}: {count} images")


if __name__ == "__main__":
    main()
