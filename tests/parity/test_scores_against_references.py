"""Scores against MONAI and against distances written out by hand, on shapes that hold every trap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_iou
from monai.metrics.meandice import compute_dice

from tskd.metrics.segmentation import score_case


def blobs(seed: int) -> np.ndarray:
    """Three classes of ellipses that overlap, touch the border and come apart."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:61, :83]
    mask = np.zeros(y.shape, dtype=np.uint8)
    for label in (1, 2, 3, 1, 2):
        centre, radius = rng.uniform((0, 0), (61, 83)), rng.uniform(4, 22, size=2)
        mask[((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < 1] = label
    return mask


def one_hot(mask: np.ndarray) -> torch.Tensor:
    return torch.stack([torch.from_numpy(mask == label) for label in (1, 2, 3)])[None].float()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("spacing", [None, (0.7, 1.9)])
def test_agrees_with_monai(seed: int, spacing: tuple[float, float] | None) -> None:
    prediction, mask = blobs(seed), blobs(seed + 100)
    scores = score_case(prediction, mask, classes=3, spacing=spacing)
    pair = {"y_pred": one_hot(prediction), "y": one_hot(mask), "include_background": True}
    grid = list(spacing) if spacing else None
    expected = torch.stack(
        [
            compute_dice(**pair)[0],
            compute_iou(**pair)[0],
            compute_hausdorff_distance(**pair, percentile=95, spacing=grid)[0],
            compute_average_surface_distance(**pair, symmetric=True, spacing=grid)[0],
        ],
        dim=1,
    )
    ours = [(score.dice, score.iou, score.hd95, score.assd) for score in scores if score.status == "scored"]
    compared = expected[[score.status == "scored" for score in scores]]
    assert len(ours) > 0
    np.testing.assert_allclose(ours, compared.numpy(), rtol=1e-5)


def brute_force(prediction: np.ndarray, mask: np.ndarray, spacing: tuple[float, float]) -> tuple[float, float]:
    """HD95 and ASSD by all pairs: a contour pixel has one of its four neighbours outside the region."""

    def contour(region: np.ndarray) -> np.ndarray:
        padded = np.pad(region, 1)
        inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return np.argwhere(region & ~inside) * np.array(spacing)

    a, b = contour(prediction == 1), contour(mask == 1)
    pairs = np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=2))
    there, back = pairs.min(axis=1), pairs.min(axis=0)
    return max(np.quantile(there, 0.95), np.quantile(back, 0.95)), (there.sum() + back.sum()) / (len(a) + len(b))


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_all_pairs(seed: int) -> None:
    prediction, mask = blobs(seed), blobs(seed + 50)
    score = score_case(prediction, mask, classes=3, spacing=(2.5, 0.3))[0]
    assert (score.hd95, score.assd) == pytest.approx(brute_force(prediction, mask, (2.5, 0.3)))


def test_two_points_by_hand() -> None:
    """Prediction {0, 10}, mask {0}: one direction has distances 0 and 10, the other 0."""
    prediction, mask = np.zeros((1, 20), dtype=np.uint8), np.zeros((1, 20), dtype=np.uint8)
    prediction[0, [0, 10]] = 1
    mask[0, 0] = 1
    (score,) = score_case(prediction, mask, classes=1, spacing=(1.0, 2.0))
    assert score.hd95 == pytest.approx(0.95 * 20)
    assert score.assd == pytest.approx(20 / 3)
    assert score.dice == pytest.approx(2 / 3)


def lumps(seed: int) -> np.ndarray:
    """Three classes of ellipsoids in a volume of few thick slices: some touch the first or last, some overlap."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.mgrid[:31, :27, :9], axis=-1)
    mask = np.zeros(grid.shape[:3], dtype=np.uint8)
    for label in (1, 2, 3, 1, 2):
        centre, radius = rng.uniform(0, (31, 27, 9)), rng.uniform((4, 4, 1), (11, 11, 4))
        mask[(((grid - centre) / radius) ** 2).sum(axis=-1) < 1] = label
    return mask


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [None, (0.7, 1.9, 8.0)])
def test_volumes_agree_with_monai(seed: int, spacing: tuple[float, ...] | None) -> None:
    prediction, mask = lumps(seed), lumps(seed + 100)
    scores = score_case(prediction, mask, classes=3, spacing=spacing)
    pair = {"y_pred": one_hot(prediction), "y": one_hot(mask), "include_background": True}
    grid = list(spacing) if spacing else None
    expected = [
        compute_dice(**pair)[0],
        compute_iou(**pair)[0],
        compute_hausdorff_distance(**pair, percentile=95, spacing=grid)[0],
        compute_average_surface_distance(**pair, symmetric=True, spacing=grid)[0],
    ]
    found = [score.status == "scored" for score in scores]
    assert any(found)
    ours = [(score.dice, score.iou, score.hd95, score.assd) for score in scores if score.status == "scored"]
    np.testing.assert_allclose(ours, torch.stack(expected, dim=1)[found].numpy(), rtol=1e-5)


def test_a_volume_without_its_end_slice_by_hand() -> None:
    """A 2 x 3 block through four slices of 8 mm, the last of them missed: every voxel of both is surface.

    24 voxels against 18 of them: Dice 36 / 42. The six that were missed lie 8 mm from the surface that was found, so 6
    of 24 distances one way are 8 and all 18 the other way are 0. A voxel has 2 x 3 x 8 = 48 cubic millimetres.
    """
    mask = np.zeros((6, 7, 5), dtype=np.uint8)
    mask[2:4, 2:5, 1:5] = 1
    prediction = mask.copy()
    prediction[:, :, 4] = 0
    (score,) = score_case(prediction, mask, classes=1, spacing=(2.0, 3.0, 8.0))
    assert (score.dice, score.iou) == (pytest.approx(36 / 42), pytest.approx(18 / 24))
    assert score.hd95 == pytest.approx(8.0)
    assert score.assd == pytest.approx(6 * 8 / (24 + 18))
    assert (score.truth_ml, score.volume_ml) == (pytest.approx(24 * 0.048), pytest.approx(18 * 0.048))
    assert score.volume_error_ml == pytest.approx(6 * 0.048)
