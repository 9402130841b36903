from __future__ import annotations

import numpy as np
import pytest

from tskd.metrics.quality import diversity, kid, mean_distance, nearest, psnr_to_nearest, squared_mmd


def features(seed: int, *, n: int = 300, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, size=(n, 16)).astype(np.float32)


class TestKid:
    def test_squared_mmd_by_hand(self) -> None:
        """One-dimensional features 0, 1 against 1, 2: kernels (xy + 1)^3 written out."""
        within_a, within_b = (0 * 1 + 1) ** 3, (1 * 2 + 1) ** 3
        between = np.mean([1, 1, (1 + 1) ** 3, (2 + 1) ** 3])
        found = squared_mmd(np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]]))
        assert found == pytest.approx(within_a + within_b - 2 * between)

    def test_interval_holds_zero_for_equal_distributions_and_not_for_others(self) -> None:
        same = kid(features(0), features(1), seed=0)
        other = kid(features(0), features(1, shift=0.5), seed=0)
        assert same.ci95[0] < 0 < same.ci95[1]
        assert 0 < other.ci95[0] < other.mean < other.ci95[1]

    def test_unbiased_whatever_the_subset_size(self) -> None:
        """The reason for KID instead of FID: small subsets do not make it larger."""
        small, large = (kid(features(0), features(1, shift=0.5), seed=0, subset_size=size) for size in (20, 150))
        assert small.mean == pytest.approx(large.mean, rel=0.1)

    def test_few_images_are_told(self) -> None:
        few = kid(features(0, n=499), features(1, n=800), seed=0, subsets=3, subset_size=10)
        assert few.warning is not None
        assert few.n == 499
        assert "499 images" in few.warning
        assert kid(features(0, n=500), features(1, n=800), seed=0, subsets=3, subset_size=10).warning is None

    def test_seed_decides(self) -> None:
        assert kid(features(0), features(1), seed=3) == kid(features(0), features(1), seed=3)

    def test_sets_that_cannot_be_compared_are_refused(self) -> None:
        with pytest.raises(ValueError, match="4 images of one width"):
            kid(features(0), features(1)[:3], seed=0)


class TestNearest:
    def test_agrees_with_all_pairs_over_chunk_borders(self) -> None:
        queries, references = features(0, n=50), features(1, n=70)
        pairs = ((queries[:, None] - references[None]) ** 2).sum(axis=2)
        index, squared = nearest(queries, references, chunk=7)
        np.testing.assert_array_equal(index, pairs.argmin(axis=1))
        np.testing.assert_allclose(squared, pairs.min(axis=1), rtol=1e-5)

    def test_exact_copies_are_at_exactly_zero(self) -> None:
        """|q|^2 + |r|^2 - 2 q.r would leave rounding noise here and hide copies among near copies."""
        references = features(0) + 100
        index, squared = nearest(references[::-1], references)
        assert (squared == 0).all()
        assert (index == np.arange(len(references))[::-1]).all()


class TestPsnr:
    def test_by_hand(self) -> None:
        """Every pixel off by 51 of 255 = 0.2: MSE 0.04, PSNR 13.98 dB."""
        references = np.stack([np.full((8, 8, 3), 0, np.uint8), np.full((8, 8, 3), 200, np.uint8)])
        found = psnr_to_nearest(np.full((1, 8, 8, 3), 149, np.uint8), references)
        assert (found.nearest[0], found.mse[0]) == (1, pytest.approx(0.04, rel=1e-5))
        assert found.decibels[0] == pytest.approx(-10 * np.log10(0.04), rel=1e-5)

    def test_copy_is_infinite(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
        assert np.isposinf(psnr_to_nearest(images, images).decibels).all()

    def test_other_sizes_and_scaled_pixels_are_refused(self) -> None:
        images = np.zeros((2, 8, 8, 3), np.uint8)
        for other in (images[:, :4], images.astype(np.float32)):
            with pytest.raises(ValueError, match="uint8 images of one size"):
                psnr_to_nearest(other, images)


class TestDiversity:
    def test_mean_distance_never_pairs_a_row_with_itself(self) -> None:
        assert mean_distance(np.array([[0.0], [3.0]]), seed=0, pairs=100) == 3.0

    def test_same_spread_is_one_half_is_half_and_one_repeated_image_zero(self) -> None:
        references = features(0)
        assert diversity(features(1), references, seed=0) == pytest.approx(1, abs=0.03)
        assert diversity(0.5 * references, references, seed=0) == pytest.approx(0.5)
        assert diversity(np.ones((9, 16)), references, seed=0) == 0

    def test_references_without_spread_are_refused(self) -> None:
        with pytest.raises(ValueError, match="all references are the same"):
            diversity(features(0), np.ones((9, 16)), seed=0)
        with pytest.raises(ValueError, match="two images"):
            diversity(features(0)[:1], features(1), seed=0)
