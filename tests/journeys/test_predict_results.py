"""Results lie where they harm nothing: no input, no other result, no mask without its row, none of another model's."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless

from tests.dicoms import STUDY, enhanced, save, save_series
from tests.serving import write_bundle
from tskd.artifacts import file_sha256
from tskd.deploy.bundle import Bundle, open_bundle, publish
from tskd.deploy.outcome import Outcome
from tskd.deploy.predict import PredictOptions, predict_paths
from tskd.deploy.studies import scans_of
from tskd.errors import UserError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(write_bundle(tmp_path_factory.mktemp("run") / "model"))


def picture(path: Path, grey: int = 200) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8), grey, np.uint8)).save(path)
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def listed(folder: Path) -> list[str]:
    with (folder / "predictions.csv").open(newline="") as file:
        return sorted({row["output"] for row in csv.DictReader(file)})


def test_every_line_names_the_network_that_it_is_from(bundle: Bundle, tmp_path: Path) -> None:
    outcome = predict_paths(bundle, [picture(tmp_path / "in/a.png"), picture(tmp_path / "in/b.png")], tmp_path / "out")
    digest = file_sha256(bundle.folder / "model.onnx")
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        assert [row["model_sha256"] for row in csv.DictReader(file)] == [digest] * 2
    assert outcome.as_dict()["model_sha256"] == digest


def test_a_mask_that_stays_from_before_keeps_its_lines(bundle: Bundle, tmp_path: Path) -> None:
    """A folder may hold the masks of two models after an update: each says by which."""
    first = [picture(tmp_path / "in/a.png"), picture(tmp_path / "in/=b.png")]
    out = tmp_path / "out"
    predict_paths(bundle, first, out)
    lines = (out / "predictions.csv").read_text().splitlines()
    (out / "predictions.csv").write_text("\n".join(lines).replace(bundle.digest, "of before") + "\n")
    again = PredictOptions(overwrite=True)
    outcome = predict_paths(bundle, [first[0], picture(tmp_path / "in/c.png")], out, options=again)
    with (out / "predictions.csv").open(newline="") as file:
        models = {row["output"]: row["model_sha256"] for row in csv.DictReader(file)}
    assert models == {"a.png": bundle.digest, "c.png": bundle.digest, "'=b.png": "of before"}
    assert "beside those of 1 mask of earlier runs" in outcome.summary(out)
    (out / "predictions.csv").write_bytes(b"\xef\xbb\xbf" + (out / "predictions.csv").read_bytes())  # a spreadsheet's
    predict_paths(bundle, first[:1], out, options=again)
    assert listed(out) == ["'=b.png", "a.png", "c.png"]
    (out / "=b.png").unlink()
    outcome = predict_paths(bundle, first[:1], out, options=again)
    assert listed(out) == ["a.png", "c.png"]
    (out / "predictions.csv").write_text("no,such,table\n1,2\n")
    predict_paths(bundle, first[:1], out, options=again)
    assert listed(out) == ["a.png"]


def damaged_series(folder: Path) -> Sequence[Path]:
    """Write three slices, of which the pixels of the second cannot be unpacked."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    plane = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1], "SeriesInstanceUID": "1.2.9"}
    paths = [
        save(noise, folder / f"IM{z:04d}.dcm", compress=JPEG2000Lossless, ImagePositionPatient=[0, 0, z], **plane)
        for z in range(3)
    ]
    data = dcmread(paths[1])
    data.PixelData = data.PixelData[:60] + bytes(len(data.PixelData) - 60)
    data.save_as(paths[1])
    return paths


def test_frames_of_one_file_are_no_copies_of_each_other(bundle: Bundle, tmp_path: Path) -> None:
    """Three time points and the begin of a fourth in one file: seven of ten frames were left out as copies of it."""
    path = enhanced(tmp_path / "dyn.dcm", [0, 3, 6] * 3 + [0])
    outcome = predict_paths(bundle, [path], tmp_path / "out", options=PredictOptions(dicom_seg=None))
    assert len(outcome.predictions) == 10
    assert outcome.failures == []


def test_nothing_that_is_not_of_a_bundle_is_replaced_by_one(bundle: Bundle, tmp_path: Path) -> None:
    place = tmp_path / "model"
    publish(bundle.folder, place)
    (place / ".DS_Store").touch()
    publish(bundle.folder, place)  # its own are
    (place / "masks").mkdir()
    (place / "masks" / "a.png").touch()
    with pytest.raises(UserError, match=r"masks is not of a bundle.*Move it away"):
        publish(bundle.folder, place)
    assert (place / "masks" / "a.png").exists()
    other = tmp_path / "other" / "model"
    other.mkdir(parents=True)
    (other / "sam_vit_b.pth").touch()
    with pytest.raises(UserError, match=r"sam_vit_b\.pth is not of a bundle"):
        publish(bundle.folder, other)


@pytest.mark.parametrize("name", [".git", "downloads"])
def test_somebody_elses_folder_with_a_list_of_sums_is_not_replaced(name: str, bundle: Bundle, tmp_path: Path) -> None:
    """Any list called SHA256SUMS made the files it names ours, and every hidden name was passed over."""
    place = tmp_path / "model"
    (place / ".git").mkdir(parents=True) if name == ".git" else place.mkdir()
    (place / "iso.img").write_bytes(b"x")
    (place / "SHA256SUMS").write_text(f"{file_sha256(place / 'iso.img')}  iso.img\n")
    if name == ".git":
        (place / "iso.img").unlink()
    with pytest.raises(UserError, match=r"is not of a bundle.*Move it away"):
        publish(bundle.folder, place)
    assert (place / "SHA256SUMS").exists()


def test_masks_are_not_written_into_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lies in the bundle"):
        predict_paths(bundle, [picture(tmp_path / "a.png")], bundle.folder / "masks")
    assert not (bundle.folder / "masks").exists()


def test_single_slices_of_a_damaged_series_replace_no_input(bundle: Bundle, tmp_path: Path) -> None:
    """The preview beside the slices was overwritten by the mask of the slice of that name."""
    damaged_series(tmp_path / "in" / "ct")
    preview = picture(tmp_path / "in" / "ct" / "IM0000.png")
    before = file_sha256(preview)
    outcome = predict_paths(bundle, [tmp_path / "in" / "ct"], tmp_path / "in", options=PredictOptions(overwrite=True))
    assert file_sha256(preview) == before
    assert any("single slices would replace" in one.problem for one in outcome.failures)


def test_single_slices_of_a_damaged_series_replace_no_other_result(bundle: Bundle, tmp_path: Path) -> None:
    damaged_series(tmp_path / "in" / "ct")
    picture(tmp_path / "in" / "ct" / "IM0000.png", grey=0)
    outcome = predict_paths(bundle, [tmp_path / "in"], tmp_path / "out", options=PredictOptions(overwrite=True))
    assert [str(one.output) for one in outcome.predictions] == ["ct/IM0000.png"]
    assert np.asarray(Image.open(tmp_path / "out/ct/IM0000.png")).shape == (6, 8)


def test_an_input_of_another_name_for_the_same_file_is_not_replaced(bundle: Bundle, tmp_path: Path) -> None:
    """As ``scan.PNG`` and ``scan.png`` are where case does not count; here a hard link stands for it."""
    scan = picture(tmp_path / "in" / "scan.jpg")
    (tmp_path / "in" / "scan.png").hardlink_to(scan)
    before = file_sha256(scan)
    with pytest.raises(UserError, match="is one of the inputs"):
        predict_paths(bundle, [scan], tmp_path / "in", options=PredictOptions(overwrite=True))
    assert file_sha256(scan) == before


def test_two_names_for_the_same_place_are_two_results_or_none(bundle: Bundle, tmp_path: Path) -> None:
    """As ``a.png`` and ``A.png`` are where case does not count; here a link stands for it."""
    images = [picture(tmp_path / "x" / "a.png"), picture(tmp_path / "y" / "A.png", grey=0)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "A.png").symlink_to("a.png")
    outcome = predict_paths(bundle, images, tmp_path / "out", options=PredictOptions(overwrite=True))
    assert [str(one.output) for one in outcome.predictions] == ["a.png"]
    assert "differs in upper and lower case alone" in outcome.failures[0].problem
    assert np.asarray(Image.open(tmp_path / "out/a.png")).all(), "of the first"


def test_what_is_removed_for_one_image_is_not_what_was_written_for_another(bundle: Bundle, tmp_path: Path) -> None:
    """``b.overlay.png`` of before is, by another name for the same place, the mask just written for ``a``."""
    images = [picture(tmp_path / "in" / name) for name in ("a.png", "b.png")]
    (tmp_path / "out").mkdir()
    written = predict_paths(bundle, images[:1], tmp_path / "out").predictions
    (tmp_path / "out" / "b.overlay.png").symlink_to("a.png")
    predict_paths(bundle, images, tmp_path / "out", options=PredictOptions(overwrite=True))
    assert (tmp_path / "out" / "b.overlay.png").is_symlink(), "on such a disk the name is a's mask itself"
    assert (tmp_path / "out" / written[0].output).is_file()


def test_the_volume_of_before_does_not_stay_beside_single_slices(bundle: Bundle, tmp_path: Path) -> None:
    folder, out, sound = tmp_path / "in" / "ct", tmp_path / "out", PredictOptions(overlays=True)
    damaged_series(folder)
    damaged = {path.name: path.read_bytes() for path in folder.iterdir()}
    whole = dcmread(folder / "IM0001.dcm")
    whole.PixelData = dcmread(folder / "IM0000.dcm").PixelData
    whole.save_as(folder / "IM0001.dcm")
    predict_paths(bundle, [tmp_path / "in"], out, options=sound)
    assert {"ct.nii.gz", "ct_0002.overlay.png"} <= {*files_in(out)}
    (folder / "IM0001.dcm").write_bytes(damaged["IM0001.dcm"])
    predict_paths(bundle, [tmp_path / "in"], out, options=PredictOptions(overwrite=True))
    assert files_in(out) == ["ct/IM0000.png", "ct/IM0002.png", "predictions.csv"]


def test_the_volume_of_before_stays_where_no_slice_can_be_read(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was removed, and nothing took its place."""
    folder, out = tmp_path / "in" / "ct", tmp_path / "out"
    save_series(folder, [(0, 0, z) for z in range(3)], **STUDY)
    picture(tmp_path / "in" / "b.png")
    predict_paths(bundle, [tmp_path / "in"], out)
    before = {name: file_sha256(out / name) for name in ("ct.nii.gz", "ct.seg.dcm")}
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-30])
    capsys.readouterr()
    outcome = predict_paths(bundle, [tmp_path / "in"], out, options=PredictOptions(overwrite=True))
    assert {name: file_sha256(out / name) for name in before} == before
    assert listed(out) == ["b.png", "ct.nii.gz"]
    assert outcome.failures
    assert "its 0 others" not in capsys.readouterr().err


def test_overwriting_keeps_the_segmentation_it_has_just_written(bundle: Bundle, tmp_path: Path) -> None:
    save_series(tmp_path / "in" / "s", [(0, 0, z) for z in range(2)], **STUDY)
    for _ in range(2):
        predict_paths(bundle, [tmp_path / "in"], tmp_path / "out", options=PredictOptions(overwrite=True))
        assert files_in(tmp_path / "out") == ["predictions.csv", "s.nii.gz", "s.seg.dcm"]


def test_names_that_no_disk_takes_end_no_run(bundle: Bundle, tmp_path: Path) -> None:
    """Of what other options would write: a name too long, and a folder in its place."""
    long = "x" * 238
    images = [picture(tmp_path / "in" / name) for name in (f"{long}.png", "a.png", "a.overlay.png/b.png")]
    for _ in range(2):
        done = predict_paths(bundle, [tmp_path / "in"], tmp_path / "out", options=PredictOptions(overwrite=True))
        assert (len(done.predictions), done.failures) == (len(images), [])


def test_a_segmentation_of_before_goes_where_there_can_be_none_now(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_series(tmp_path / "in" / "s", [(0, 0, z) for z in range(2)], **STUDY)
    predict_paths(bundle, [tmp_path / "in"], tmp_path / "out")
    assert "s.seg.dcm" in files_in(tmp_path / "out")
    monkeypatch.setattr("tskd.deploy.dicom_out.SegmentationFiles.content", lambda *_: None)
    predict_paths(bundle, [tmp_path / "in"], tmp_path / "out", options=PredictOptions(overwrite=True))
    assert files_in(tmp_path / "out") == ["predictions.csv", "s.nii.gz"]


def test_inputs_that_cannot_be_read_are_not_replaced_either(bundle: Bundle, tmp_path: Path) -> None:
    """A copy still under way: the whole volume beside it gives a mask of the broken one's name."""
    volume = nibabel.Nifti1Image(np.full((6, 5, 2), 200, np.uint8), np.eye(4))
    nibabel.save(volume, tmp_path / "a.nii")
    nibabel.save(volume, tmp_path / "a.nii.gz")
    content = (tmp_path / "a.nii.gz").read_bytes()[:40]
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(UserError, match="one of the inputs"):
        predict_paths(bundle, [tmp_path], tmp_path, options=PredictOptions(overwrite=True))
    assert (tmp_path / "a.nii.gz").read_bytes() == content


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_no_mask_is_there_without_its_row(
    error: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while the segmentation of the second series is made, whose labels were there by then."""
    for name in ("a", "b"):
        save_series(tmp_path / "in" / name, [(0, 0, z) for z in range(3)], name=name)
    made: list[object] = []

    def stops(*arguments: object) -> None:
        made.append(arguments)
        if len(made) == 2:
            raise error

    monkeypatch.setattr("tskd.deploy.dicom_out.SegmentationFiles.content", stops)
    with pytest.raises((KeyboardInterrupt, OSError)):
        predict_paths(bundle, [tmp_path / "in"], tmp_path / "out")
    assert files_in(tmp_path / "out") == ["a.nii.gz", "predictions.csv"]
    assert listed(tmp_path / "out") == ["a.nii.gz"]


def test_a_segmentation_whose_name_is_too_long_costs_no_labels(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(np.zeros((6, 4), np.int16), tmp_path / "x.dcm", Modality="CT", SeriesInstanceUID="1.2", **STUDY)
    long = path.rename(tmp_path / f"{'x' * 248}.dcm")
    outcome = predict_paths(bundle, [long], tmp_path / "out")
    assert listed(tmp_path / "out") == [f"{'x' * 248}.png"]
    assert outcome.segmentations == outcome.failures == []
    assert "too long for a segmentation's" in capsys.readouterr().err


def test_what_other_options_wrote_does_not_stay_beside_new_labels(bundle: Bundle, tmp_path: Path) -> None:
    """Else a viewer shows the segmentation of one model and the labels of another."""
    save_series(tmp_path / "in" / "s", [(0, 0, z) for z in range(2)], **STUDY)
    picture(tmp_path / "in" / "b.png")
    out = tmp_path / "out"
    predict_paths(bundle, [tmp_path / "in"], out, options=PredictOptions(overlays=True, probabilities=True))
    assert {"s.seg.dcm", "s_0001.overlay.png", "b.probabilities.npz"} <= {*files_in(out)}
    predict_paths(bundle, [tmp_path / "in"], out, options=PredictOptions(overwrite=True, dicom_seg=None))
    assert files_in(out) == ["b.png", "predictions.csv", "s.nii.gz"]


def test_labels_of_before_are_named_where_an_input_fails_now(bundle: Bundle, tmp_path: Path) -> None:
    path = picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "b.png")
    predict_paths(bundle, [tmp_path / "in"], tmp_path / "out")
    path.write_bytes(path.read_bytes()[:50])
    outcome = predict_paths(bundle, [tmp_path / "in"], tmp_path / "out", options=PredictOptions(overwrite=True))
    (failure,) = outcome.failures
    assert failure.problem.endswith(f"{tmp_path / 'out' / 'a.png'} is of an earlier run.")


def test_a_file_named_as_anothers_folder_stops_nothing_else(bundle: Bundle, tmp_path: Path) -> None:
    for name in ("scan.jpg", "scan.png/x.png", "y.png", "predictions.csv/z.png"):
        picture(tmp_path / "in" / name)
    outcome = predict_paths(bundle, [tmp_path / "in"], tmp_path / "out")
    assert listed(tmp_path / "out") == ["y.png"]
    assert sorted(one.source.name for one in outcome.failures) == ["scan.jpg", "x.png", "z.png"]


def test_a_folder_in_the_way_costs_that_result_alone(bundle: Bundle, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "out" / "a.png" / "full").mkdir(parents=True)
    outcome = predict_paths(bundle, [tmp_path / "in"], tmp_path / "out", options=PredictOptions(overwrite=True))
    assert listed(tmp_path / "out") == ["b.png"]
    assert "in its way" in outcome.failures[0].problem


def test_a_linked_folder_is_called_as_it_was_given(bundle: Bundle, tmp_path: Path) -> None:
    """What the link leads to may be called by the patient's name."""
    save_series(tmp_path / "archive" / "DOE_JANE", [(0, 0, z) for z in range(2)])
    (tmp_path / "case01").symlink_to(tmp_path / "archive" / "DOE_JANE")
    outcome = predict_paths(bundle, [tmp_path / "case01"], tmp_path / "out")
    assert {str(one.output) for one in outcome.predictions} == {"case01.nii.gz"}
    assert "DOE_JANE" not in (tmp_path / "out" / "predictions.csv").read_text()


def test_a_volume_that_fails_leaves_nothing_of_its_slices(bundle: Bundle, tmp_path: Path) -> None:
    values = np.ones((6, 5, 3), np.float32)
    values[0, 0, 2] = np.nan
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "in" / "v.nii.gz")
    picture(tmp_path / "in" / "z.png")
    predict_paths(
        bundle, [tmp_path / "in"], tmp_path / "out", options=PredictOptions(overlays=True, probabilities=True)
    )
    assert files_in(tmp_path / "out") == ["predictions.csv", "z.overlay.png", "z.png", "z.probabilities.npz"]


def test_extras_of_a_damaged_series_lie_beside_its_single_slices(bundle: Bundle, tmp_path: Path) -> None:
    damaged_series(tmp_path / "in" / "ct")
    predict_paths(bundle, [tmp_path / "in"], tmp_path / "out", options=PredictOptions(overlays=True, dicom_seg=None))
    singles = [f"ct/IM000{number}.{ending}" for number in (0, 2) for ending in ("overlay.png", "png")]
    assert files_in(tmp_path / "out") == [*singles, "predictions.csv"]


def test_an_input_with_nothing_in_it_is_told(bundle: Bundle, tmp_path: Path) -> None:
    """Such as a share that is not mounted."""
    (tmp_path / "empty").mkdir()
    outcome = predict_paths(bundle, [tmp_path / "empty", picture(tmp_path / "a.png")], tmp_path / "out")
    assert [one.problem for one in outcome.failures] == [
        f"{tmp_path / 'empty'}: no image found. Allowed: {outcome.failures[0].problem.partition('Allowed: ')[2]}"
    ]
    assert listed(tmp_path / "out") == ["a.png"]


def test_a_file_given_twice_is_answered_once(bundle: Bundle, tmp_path: Path) -> None:
    path = picture(tmp_path / "in" / "a.png")
    outcome = predict_paths(bundle, [tmp_path / "in", path, tmp_path / "in" / "." / "a.png"], tmp_path / "out")
    assert outcome.failures == []
    assert listed(tmp_path / "out") == ["a.png"]


def test_no_table_is_left_where_nothing_could_be_predicted(bundle: Bundle, tmp_path: Path) -> None:
    """The corrected command would have to replace it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "v.nii.gz").write_bytes(b"\x1f\x8b")
    outcome = Outcome(())
    with pytest.raises(UserError, match="1 input could not be predicted"):
        predict_paths(bundle, [tmp_path / "in"], tmp_path / "out", outcome=outcome)
    assert len(outcome.failures) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_is_looked_through_once_though_masks_are_written_into_it(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mask changed the folder, whose heads were all read anew for the next slice: 65 s for 150 slices, not 2."""
    for number in range(6):
        save(
            np.full((6, 4), 1000 * number, np.uint16), tmp_path / f"{number}.dcm", Modality="CR",
            SeriesInstanceUID="1.2.7", InstanceNumber=number,
        )  # fmt: skip
    from tskd.data import dicom_grey

    looked: list[Path] = []
    look = dicom_grey._look_through  # noqa: SLF001

    def counted(folder: Path) -> Any:
        looked.append(folder)
        return look(folder)

    monkeypatch.setattr(dicom_grey, "_look_through", counted)
    predict_paths(bundle, [tmp_path], tmp_path, options=PredictOptions(threads=1))
    assert len(files_in(tmp_path)) == 6 + 6 + 1 + sum(name.endswith(".seg.dcm") for name in files_in(tmp_path))
    assert len(looked) == 1


def test_a_slice_that_comes_or_changes_is_seen(tmp_path: Path) -> None:
    """Percentiles are of the whole series, of which one file more or another content is another series."""
    from tskd.data.images import read_image

    def slice_of(number: int, grey: int) -> Path:
        values = np.full((6, 4), grey, np.uint16)
        values[0, 0] = 0
        return save(values, tmp_path / f"{number}.dcm", Modality="CR", SeriesInstanceUID="1.2.7", InstanceNumber=number)

    first = slice_of(1, 1000)
    alone = int(read_image(first)[3, 3, 0])
    brighter = slice_of(2, 4000)
    beside = int(read_image(first)[3, 3, 0])
    assert beside < alone
    shutil.copyfile(slice_of(3, 1000), brighter)
    (tmp_path / "3.dcm").unlink()
    assert int(read_image(first)[3, 3, 0]) == alone


def test_to_send_segmentations_that_are_not_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave one out"), scans_of([], "http://a", "1.2", send=True, segmented=False):
        pass
