"""Large images as tiles: what is cut, from where, and what stays whole."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.made_up import make_prepared
from tskd.artifacts import Store
from tskd.data.labels import has_foreground
from tskd.data.prepared import IMAGES, OF_TARGET, Part, Prepared, squeeze_image, squeeze_mask
from tskd.data.tiles import MOST_TILES, cut_tile, tile_corners
from tskd.deploy.network_file import Answer
from tskd.errors import UserError
from tskd.recipe.schema import DataConfig, TransferConfig
from tskd.stages import int8, teacher_images
from tskd.stages.export import parity_cases
from tskd.stages.leaks import seen_images
from tskd.stages.prepare import build
from tskd.stages.transfer import augmented_images, count_target, real_records
from tskd.types import UNLABELLED

TILE, SIDE = 48, 32
SIZES = {"a": (60, 100), "b": (40, 90), "c": (30, 48), "d": (96, 96), "e": (480, 300), "f": (64, 80), "g": (70, 60)}
"""Name -> rows and columns: a short side, one that fits into a tile, one with very many tiles."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of noise; e has no mask, f and g are the test."""
    root, rng = tmp_path_factory.mktemp("tiles") / "data", np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for name, size in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / f"images/{name}.png")
        mask = np.zeros(size, np.uint8)
        mask[4 : size[0] - 9, 7:30] = 1
        if name != "e":
            Image.fromarray(mask).save(root / f"masks/{name}.png")
    split = [f"{name},{'test' if name in 'fg' else 'train'}" for name in SIZES]
    (root / "split.csv").write_text("id,split\n" + "\n".join(split))
    return root


def settings(root: Path, **more: object) -> DataConfig:
    return DataConfig(root=str(root), image_size=SIDE, val_share=0, **more)


@pytest.fixture(scope="module")
def tiled(root: Path) -> Prepared:
    return Prepared(build(Store(root.parent / "store"), settings(root, tile=TILE)).path)


def native(root: Path, name: str, kind: str = "images") -> np.ndarray:
    return np.asarray(Image.open(root / f"{kind}/{name}.png"))


def test_every_tile_of_a_labelled_image_trains_and_some_of_one_without_labels(tiled: Prepared) -> None:
    counted = Counter(record.image for record in tiled.records)
    for name in "abd":
        assert counted[name] == len(list(tile_corners(SIZES[name], TILE)))
    assert (counted["c"], counted["f"], counted["g"], counted["e"]) == (1, 1, 1, MOST_TILES)
    assert [tiled.count(part) for part in ("train", "unlabelled", "test")] == [4, 1, 2]
    assert len({record.id for record in tiled.records}) == len(tiled.records)
    assert {record.case for record in tiled.records} == set(SIZES)
    rows = [int(name.partition("@")[2].partition(",")[0]) for name in tiled.names(tiled.rows("unlabelled"))]
    assert (min(rows), max(rows)) == (0, 480 - TILE), "evenly spaced from the first to the last"


def test_for_validation_tiles_do_not_overlap(root: Path) -> None:
    data = DataConfig(root=str(root), image_size=SIDE, val_share=0.5, tile=TILE)
    prepared = Prepared(build(Store(root.parent / "store"), data).path)
    counted = Counter(record.image for record in prepared.records if record.part == "val")
    assert counted
    assert all(count == len(list(tile_corners(SIZES[name], TILE, overlap=0))) for name, count in counted.items())


@pytest.mark.parametrize("val_share", [0, 0.5])
def test_tiles_without_a_label_are_left_out(root: Path, val_share: float) -> None:
    """An image of which a region is annotated alone: nothing is learned from the rest, and it has no score."""
    other, rng = root.parent / f"region{val_share}", np.random.default_rng(1)
    for kind in ("images", "masks"):
        (other / kind).mkdir(parents=True)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), np.uint8)).save(other / f"images/{number}.png")
        mask = np.full((96, 96), UNLABELLED, np.uint8)
        mask[:20, :20], mask[4:9, 4:9], mask[94, 94] = 0, 1, 0  # the last is lost in the tile's own squeezing
        Image.fromarray(mask).save(other / f"masks/{number}.png")
    (other / "dataset.yaml").write_text("classes: [cell]\nlabels: {0: 0, 1: 1, 255: 255}\n")
    data = DataConfig(root=str(other), image_size=SIDE, val_share=val_share, tile=TILE)
    prepared = Prepared(build(Store(root.parent / "store"), data).path)
    assert {prepared.records[row].corner for row in prepared.rows("train", "val")} == {(0, 0)}
    assert all((mask != UNLABELLED).any() for mask in prepared.masks)


def test_whole_images_whose_few_labels_are_squeezed_away_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dots of a pixel, of which those at odd places are left at half the size: validation ended in a traceback."""
    root = tmp_path / "data"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number in range(8):
        Image.fromarray(np.full((64, 64, 3), number, np.uint8)).save(root / f"images/{number}.png")
        mask = np.full((64, 64), UNLABELLED, np.uint8)
        odd = number > 1
        mask[8 + odd, 8 + odd], mask[20 + odd, 30 + odd] = 0, 1
        Image.fromarray(mask).save(root / f"masks/{number}.png")
    (root / "dataset.yaml").write_text("classes: [cell]\nlabels: {0: 0, 1: 1, 255: 255}\n")
    (root / "split.csv").write_text("id,split\n" + "".join(f"{n},{'test' if n > 5 else 'train'}\n" for n in range(8)))
    data = DataConfig(root=str(root), image_size=SIDE, val_share=0.4)
    shown = Prepared(build(Store(tmp_path / "store"), data).path)
    lost = capsys.readouterr().err.count("no labelled pixel of 2 images (first: ")
    assert (shown.count("train", "val"), lost) == (4, 1)
    assert all((mask != UNLABELLED).any() for mask in shown.masks)
    with pytest.raises(UserError, match=r"is left at 8 px, and no other image trains\. Label more of each image"):
        build(Store(tmp_path / "store"), data.model_copy(update={"image_size": 8}))


def tiles_of(prepared: Prepared, *parts: Part) -> Counter[str]:
    return Counter(prepared.records[row].image for row in prepared.rows(*parts))


def test_images_without_labels_are_not_outnumbered_by_tiles_of_labelled_ones(root: Path, tmp_path: Path) -> None:
    data = DataConfig(root=str(root), image_size=SIDE, val_share=0, tile=24)
    tiled = Prepared(build(Store(root.parent / "store"), data).path)
    assert max(tiles_of(tiled, "train").values()) > MOST_TILES
    drawn = Counter(tiled.records[one.row].image for one in real_records(TransferConfig(), tiled, seed=0))
    assert max(drawn.values()) == MOST_TILES
    assert set(drawn) == set("abcde")


def test_copies_across_data_sets_are_found_whole(root: Path, tiled: Prepared) -> None:
    """The middle of a test image is none of the tiles that train."""
    other = root.parent / "other"
    for kind in ("images", "masks"):
        (other / kind).mkdir(parents=True)
        for mine, theirs in (("a", "x"), ("f", "y")):
            shutil.copy(root / kind / f"{mine}.png", other / kind / f"{theirs}.png")
    (other / "split.csv").write_text("id,split\nx,test\ny,train\n")
    tested = build(Store(root.parent / "store"), settings(other, tile=TILE, allow_duplicates=True))
    assert seen_images(tiled, Prepared(tested.path)) == 1
    assert seen_images(Prepared(tested.path), tiled) == 1, "y is f, which is tested there"


def test_what_is_learned_from_without_labels_is_learned_from_too(tmp_path: Path) -> None:
    counts: dict[Part, int] = {"train": 1, "val": 0, "unlabelled": 0, "test": 0}
    trained = make_prepared(tmp_path / "trained", size=SIDE, counts={**counts, "unlabelled": 3})
    tested = make_prepared(tmp_path / "tested", size=SIDE, counts={**counts, "test": 3})
    assert seen_images(trained, tested) == 3


def test_where_nothing_is_cut_larger_images_still_will_be(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = Prepared(build(Store(root.parent / "store"), settings(root, tile=512)).path)
    assert {record.corner for record in prepared.records} == {None}
    assert prepared.tile == 512, "another data set that is tested on may hold larger ones, and the model too meets some"
    assert "no image is larger than data.tile=512" in capsys.readouterr().err
    build(Store(root.parent / "store"), settings(root, tile=16))
    assert "tiles of 16 px are enlarged to 32 px" in capsys.readouterr().err


def test_a_row_shows_what_the_image_shows_there(tiled: Prepared, root: Path) -> None:
    for row, record in enumerate(tiled.records):
        if record.part == "test":
            continue
        image = native(root, record.image)
        shown = image if record.corner is None else cut_tile(image, record.corner, TILE)
        assert np.array_equal(tiled.images[row], squeeze_image(shown, SIDE))
        if record.part == "train":
            mask = native(root, record.image, "masks")
            shown = mask if record.corner is None else cut_tile(mask, record.corner, TILE, UNLABELLED)
            assert np.array_equal(tiled.masks[row], squeeze_mask(shown, SIDE))
    filled = tiled.masks[tiled.row_of("b@0,0")]
    assert filled[0].tolist() == [UNLABELLED] * SIDE, "beyond the image nothing is known"
    assert UNLABELLED not in tiled.masks[tiled.row_of("a@0,0")]


def test_test_images_are_whole_at_their_own_size_and_shown_by_their_middle(tiled: Prepared, root: Path) -> None:
    for row in tiled.rows("test"):
        record = tiled.records[row]
        assert (record.id, record.corner) == (record.image, None)
        assert np.array_equal(tiled.native_image(row), native(root, record.id))
        assert np.array_equal(tiled.native_mask(row), native(root, record.id, "masks"))
    middle = cut_tile(native(root, "f"), (8, 16), TILE)
    assert np.array_equal(tiled.images[tiled.row_of("f")], squeeze_image(middle, SIDE))


def test_tiles_know_the_size_of_their_image(tiled: Prepared) -> None:
    assert all((record.height, record.width) == SIZES[record.image] for record in tiled.records)


def test_without_tiles_records_and_names_are_what_they_were(root: Path, tiled: Prepared) -> None:
    artifact = build(Store(root.parent / "store"), settings(root))
    whole = Prepared(artifact.path)
    assert len(whole.records) == len(SIZES)
    assert whole.tile is None
    assert tiled.tile == TILE
    assert "tile" not in artifact.manifest["config"]
    text = (artifact.path / "records.jsonl").read_text() + (artifact.path / "dataset.json").read_text()
    assert "corner" not in text
    assert "tile" not in text


def test_a_teacher_of_another_size_sees_the_same_tiles(root: Path, tiled: Prepared) -> None:
    store, data = Store(root.parent / "store"), settings(root, tile=TILE)
    found = Prepared(teacher_images.build(store, data, build(store, data), 64).path)
    for row, record in enumerate(found.records):
        assert record == tiled.records[row]
        image = native(root, record.image)
        shown = image if record.corner is None else cut_tile(image, record.corner, TILE)
        assert np.array_equal(found.images[row], squeeze_image(shown, 64))
    shown = cut_tile(native(root, "b", "masks"), (0, 24), TILE, UNLABELLED)
    assert np.array_equal(found.masks[tiled.row_of("b@0,24")], squeeze_mask(shown, 64))


def test_a_target_is_learned_from_without_labels_so_its_labelled_images_give_no_more_tiles(root: Path) -> None:
    data = DataConfig(root=str(root), image_size=SIDE, val_share=0, tile=24)
    target = Prepared(build(Store(root.parent / "store"), data).path)
    wanted = {image: min(count, MOST_TILES) for image, count in tiles_of(target, *OF_TARGET).items()}
    assert count_target(TransferConfig(), target) == sum(wanted.values()) < len(target.rows(*OF_TARGET))


def test_augmented_tiles_are_of_all_images(tiled: Prepared, tmp_path: Path) -> None:
    """Red where all tiles of the first image come first: few augmented images would show one source."""
    folder = tmp_path / "marked"
    shutil.copytree(tiled.folder, folder)
    labelled = tiled.rows("train")
    brightness = {name: 60 * place for place, name in enumerate(tiles_of(tiled, "train"), start=1)}
    images = np.array(tiled.images)
    images[labelled] = np.array([brightness[tiled.records[row].image] for row in labelled])[:, None, None, None]
    np.save(folder / IMAGES, images)
    drawn = [image.mean() for image in augmented_images(range(4), Prepared(folder), flip="none", seed=0)]
    assert np.corrcoef(drawn, [*brightness.values()])[0, 1] > 0.8


def test_the_exported_file_is_checked_on_tiles_with_a_structure(tiled: Prepared, root: Path) -> None:
    """What the network sees at once, and not an empty corner."""
    for case in parity_cases(tiled, 2):
        image, mask = native(root, case.id), native(root, case.id, "masks")
        corner = next(at for at in tile_corners(image.shape, TILE) if cut_tile(mask, at, TILE).any())
        assert np.array_equal(case.image, cut_tile(image, corner, TILE))
        assert np.array_equal(case.mask, cut_tile(mask, corner, TILE))


def test_int8_is_judged_on_tiles_with_a_structure(tiled: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tiles without one both networks are right, whatever int8 has lost."""
    empty = Answer(np.zeros((SIDE, SIDE), np.uint8), np.zeros((2, SIDE, SIDE), np.float32), None, None)
    monkeypatch.setattr(int8, "ask", lambda session, image: empty)
    shown = sum(has_foreground(mask) for mask in tiled.masks)
    assert 0 < shown < len(tiled.masks)
    assert int8.training_dice(None, tiled) == [0.0] * min(shown, int8.JUDGED_ON)


def test_int8_is_not_judged_where_nothing_shows_a_structure(tiled: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two networks that find nothing are alike on empty images, and one of them would be shipped for it."""
    monkeypatch.setattr(int8, "has_foreground", lambda mask: False)
    monkeypatch.setattr(int8, "open_session", lambda path: None)
    monkeypatch.setattr(int8, "median_ms", lambda asked, image: (10.0, 5.0))
    made = tiled.folder / "records.jsonl"  # any file: its size is told
    assert int8.training_dice(None, tiled) == []
    verdict = int8.compare(made, made, "static", tiled, np.zeros((SIDE, SIDE, 3), np.uint8))
    assert (verdict.shipped, verdict.dice_drop) == (False, None)
    assert "no labelled image of the training side shows a structure" in verdict.reason
