"""Transfer: choose, and partly make, the images that the student learns from without labels.

Real training images first, then those of the site where the student will work, then images sampled from the diffusion
model that passed the gate against copies, then labelled training images under strong augmentation. Test images never
enter, nor what the teacher is selected on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tskd.artifacts import Artifact
from tskd.data.augment import GeometryRange, apply_photometry, draw_geometry, draw_photometry, move_images
from tskd.data.prepared import OF_TARGET, Part, Prepared, rows_by_image, spaced
from tskd.data.tiles import MOST_TILES
from tskd.data.transfer_set import (
    ORIGINS,
    Origin,
    TransferRecord,
    images_path,
    read_samples,
    write_images,
    write_records,
)
from tskd.engine.batches import allowed_flips, to_images
from tskd.errors import UserError
from tskd.models.diffusion import to_uint8
from tskd.recipe.schema import NAMING, Flip, TransferConfig
from tskd.seeding import numpy_generator, torch_generator
from tskd.stages.gate import drop_copies
from tskd.stages.workbench import Workbench

VERSION = 5
REAL_PARTS: tuple[Part, ...] = ("unlabelled", "train")
"""Parts of the data whose images may be in a transfer set."""
ROTATION, SCALE, SHIFT, PHOTOMETRY = 30.0, 0.3, 0.15, 1.5
"""About twice what training draws anyway: a stored image should add to what training makes of its source."""


def build(
    bench: Workbench,
    config: TransferConfig,
    data: Artifact,
    samples: Sequence[Artifact],
    target: Artifact | None = None,
) -> Artifact:
    """Return the transfer set; ``samples`` are the blocks of sampled images, none where ``config.synthetic`` is 0.

    ``target``: the prepared data of ``config.target``, where images of it are wanted.
    """

    def make(folder: Path) -> dict[str, Any]:
        sampled = read_samples([block.path for block in samples]) if samples else None
        other = None if target is None else Prepared(target.path)
        return write_transfer(config, Prepared(data.path), folder, seed=bench.seed, samples=sampled, target=other)

    blocks = {f"samples {number}": block.digest for number, block in enumerate(samples)}
    inputs = {"data": data.digest, **blocks, **({} if target is None else {"target": target.digest})}
    settings = config.model_dump(exclude={"target", *(("from_target",) if target is None else ())}, context=NAMING)
    return bench.build("transfer", make, config=settings, inputs=inputs, version=VERSION)


def write_transfer(
    config: TransferConfig,
    prepared: Prepared,
    folder: Path,
    *,
    seed: int,
    samples: np.ndarray | None = None,
    target: Prepared | None = None,
) -> dict[str, Any]:
    """Write the list of transfer images and those that exist nowhere else; drop synthetic ones that are copies.

    ``samples`` (N, S, S, 3) uint8 is needed where ``config.synthetic`` is above 0. Raises UserError for more real
    images than there are, too few synthetic ones to judge, and a transfer set without any image.
    """
    records = real_records(config, prepared, seed=seed)
    if target is not None:
        records += _store_target(folder, config, target, seed=seed)
    judged: dict[str, Any] = {}
    if config.synthetic:
        assert samples is not None
        kept, judged = drop_copies(samples, prepared, folder, quantile=config.copy_quantile, seed=seed)
        records += _store(folder, "synthetic", kept.tolist(), (samples[number] for number in kept), prepared)
    if config.augmented:
        numbers = range(config.augmented)
        drawn = augmented_images(numbers, prepared, flip=config.flip, seed=seed)
        records += _store(folder, "augmented", numbers, drawn, prepared)
    if not records:
        gate = f"; all {config.synthetic} synthetic images were copies" if config.synthetic else ""
        raise UserError(
            f"the transfer set is empty{gate}: set transfer.real, transfer.from_target, transfer.synthetic or "
            "transfer.augmented above 0"
        )
    write_records(folder, records)
    return count_origins(records) | judged


def real_records(config: TransferConfig, prepared: Prepared, *, seed: int) -> list[TransferRecord]:
    """Return the real images, never of val or test.

    Where fewer are wanted than there are they are drawn, unlabelled ones first: a list of files is often sorted by
    diagnosis or patient. Of one seed a smaller number is a part of a larger one.
    """
    parts = _real_rows(prepared)
    drawn = np.concatenate([numpy_generator(seed, "real images", len(rows)).permutation(rows) for rows in parts])
    chosen = set(drawn[: count_real(config, prepared)].tolist())
    rows = [row for row in np.concatenate(parts).tolist() if row in chosen]
    return [TransferRecord(prepared.records[row].id, "real", row) for row in rows]


def _real_rows(prepared: Prepared) -> list[np.ndarray]:
    """Return the rows of each of ``REAL_PARTS``; beside images without labels no labelled one gives more tiles than
    they do at most, or a few labelled images would be most of what there is."""
    unlabelled, train = (prepared.rows(part) for part in REAL_PARTS)
    return [unlabelled, _some_tiles(prepared, train) if len(unlabelled) else train]


def _target_rows(target: Prepared) -> np.ndarray:
    """Return the rows of a target's images, which are learned from without labels, whether they have some or not."""
    return _some_tiles(target, target.rows(*OF_TARGET))


def _some_tiles(prepared: Prepared, rows: np.ndarray) -> np.ndarray:
    """Return the rows, of each image no more tiles than one without labels has."""
    chosen = [row for tiles in rows_by_image(prepared.records, rows).values() for row in spaced(tiles, MOST_TILES)]
    return np.array(chosen, np.int64)


def _store_target(folder: Path, config: TransferConfig, target: Prepared, *, seed: int) -> list[TransferRecord]:
    """Write images of the target's site and return their records; where fewer are wanted they are drawn.

    They are stored as ``target`` holds them, which may be larger than what the student sees.
    """
    rows = _target_rows(target)
    drawn = numpy_generator(seed, "target images", len(rows)).permutation(rows)
    chosen = sorted(drawn[: count_target(config, target)].tolist())
    images = (target.images[row] for row in chosen)
    write_images(images_path(folder, "target"), images, count=len(chosen), size=target.image_size)
    return [TransferRecord(f"target/{target.records[row].id}", "target", place) for place, row in enumerate(chosen)]


def count_target(config: TransferConfig, target: Prepared | None) -> int:
    """Return how many images of the target's site are wanted. Raises UserError where there are fewer."""
    if target is None:
        return 0
    there, owner = len(_target_rows(target)), "transfer.target has {} besides its test images"
    return _wanted("transfer.from_target", config.from_target, there, owner)


def count_real(config: TransferConfig, prepared: Prepared) -> int:
    """Return how many real images are wanted. Raises UserError where there are fewer."""
    return _wanted("transfer.real", config.real, sum(map(len, _real_rows(prepared))), "the training data has {}")


def _wanted(key: str, asked: int | None, there: int, owner: str) -> int:
    if asked is not None and asked > there:
        raise UserError(
            f"{key}: {asked} images are asked for, {owner.format(there)}. Set at most that, or leave it out for all."
        )
    return there if asked is None else asked


def count_wanted(config: TransferConfig, prepared: Prepared, target: Prepared | None = None) -> int:
    """Return how many images the settings ask for, whatever the gate will drop; UserError as ``count_real``."""
    made = config.synthetic + config.augmented
    return count_real(config, prepared) + count_target(config, target) + made


def augmented_images(numbers: Sequence[int], prepared: Prepared, *, flip: Flip, seed: int) -> Iterator[np.ndarray]:
    """Yield labelled training images (S, S, 3) uint8 under strong augmentation, each source equally often.

    Image k is a function of (seed, k) alone.
    """
    images = list(rows_by_image(prepared.records, prepared.rows("train")).values())
    limits = GeometryRange(*allowed_flips(flip, prepared.classes), ROTATION, SCALE, SHIFT)
    for number in numbers:
        generator = torch_generator(seed, "augmented", number)
        turn, place = divmod(number, len(images))
        image = to_images(prepared.images[[images[place][turn % len(images[place])]]])
        moved = move_images(image, draw_geometry(1, limits, generator))
        yield to_uint8(apply_photometry(moved, draw_photometry(moved.shape, PHOTOMETRY, generator)))[0]


def count_origins(records: Sequence[TransferRecord]) -> dict[str, Any]:
    """Return how many images come from where, and their shares of the whole."""
    found = Counter(record.origin for record in records)
    counts: dict[str, Any] = {origin: found[origin] for origin in ORIGINS if origin != "target" or found[origin]}
    return {**counts, "shares": {origin: round(count / len(records), 4) for origin, count in counts.items()}}


def _store(
    folder: Path, origin: Origin, numbers: Sequence[int], images: Iterator[np.ndarray], prepared: Prepared
) -> list[TransferRecord]:
    """Write images of a made-up origin and return their records, named by the numbers they were drawn with."""
    write_images(images_path(folder, origin), images, count=len(numbers), size=prepared.image_size)
    return [TransferRecord(f"{origin}/{number:06d}", origin, row) for row, number in enumerate(numbers)]
