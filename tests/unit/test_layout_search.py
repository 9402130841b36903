"""What a layout says of labels that it does not use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tskd.data.images import IMAGE_SUFFIXES
from tskd.data.layouts.base import Search

MASKS = Path("masks")


def said_of(label: str, *ids: str) -> str:
    search = Search()
    search.name_unclaimed({label: MASKS / f"{label}.png"}, set(), ids)
    (fault,) = search.faults
    return fault.message


@pytest.mark.parametrize(
    ("label", "image", "said"),
    [
        ("p1", "p1_0003", "the image's name ends in _0003"),
        ("p1_0000", "p1", "channel number _0000. Rename it to p1.png"),
        ("p1", "p1", "not used, though an image has its name"),
        ("p1_mask", "p1", "rename it to p1.png"),
        ("p2", "p1", "no image has its name"),
    ],
)
def test_the_cause_is_that_of_the_names(label: str, image: str, said: str) -> None:
    """Red where a label of exactly an image's name is told that the image's ends in a number."""
    assert said in said_of(label, image)


class Counted(list[str]):
    """Counts how often it is gone through."""

    times = 0

    def __iter__(self) -> Iterator[str]:
        self.times += 1
        return super().__iter__()


def test_the_images_are_gone_through_once_whatever_the_number_of_labels() -> None:
    """Red where every label is held against every image: minutes for a few thousand of each."""
    ids = Counted(f"case{number:02d}" for number in range(20))
    labels = {f"case{number:02d}_mask": MASKS / f"case{number:02d}_mask.png" for number in range(20)}
    search = Search()
    search.name_unclaimed(labels, [], ids)
    assert len(search.faults) == 20
    assert ids.times == 1


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("c0.seg.nrrd", "In 3D Slicer export"),
        ("c0.nrrd", "In 3D Slicer export"),
        ("c0.mha", ".nii.gz"),
        ("c0.MGZ", ".nii.gz"),
        ("c0.nii.gz", "Save the label in one that is"),
        ("c0.json", "Save the label in one that is"),
    ],
)
def test_a_label_of_a_type_that_is_not_read_is_named_whatever_its_endings(
    name: str, remedy: str, tmp_path: Path
) -> None:
    (tmp_path / name).touch()
    (tmp_path / "c1.png").touch()
    (tmp_path / "c1.seg.nrrd").touch()  # beside one that is read
    (tmp_path / "notes.seg.txt").touch()
    search = Search()
    search.by_id(tmp_path, lambda path: path.suffix in IMAGE_SUFFIXES, claims={"c0", "c1"})
    (fault,) = search.faults
    assert fault.path.name == name
    assert remedy in fault.message


def test_an_image_with_dots_in_its_name_has_its_own_label(tmp_path: Path) -> None:
    (tmp_path / "a.b.seg.nrrd").touch()
    search = Search()
    search.by_id(tmp_path, lambda path: False, claims={"a.b"})
    assert [fault.path.name for fault in search.faults] == ["a.b.seg.nrrd"]
