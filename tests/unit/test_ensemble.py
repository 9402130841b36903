"""Several teachers as one: averages by hand, and folds that no case lies in twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tskd.data.prepared import DATASET, MASKS, Prepared, PreparedRecord, write_prepared_records
from tskd.errors import UserError
from tskd.machine.disk import write_json
from tskd.models.ensemble import Ensemble, logits_of, mirrors
from tskd.stages.folds import held_out_rows
from tskd.types import SegmentationOutput


class Reading(nn.Module):
    """Answers, where a pixel is bright, with a logit that depends on its column: 0, 1, 2, ... times a factor."""

    feature_dims = (3,)

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: Tensor) -> SegmentationOutput:
        columns = torch.arange(images.shape[-1], dtype=torch.float32)
        return SegmentationOutput((images * self.factor,), images[:, :1] * columns * self.factor)


def test_members_answer_with_the_mean_of_their_probabilities() -> None:
    """Logits averaged instead, a member left out, or features of another than the first."""
    images = torch.ones(1, 3, 1, 3)
    answer = Ensemble([Reading(1.0), Reading(-2.0)])(images)
    expected = [(1 / (1 + np.exp(-x)) + 1 / (1 + np.exp(2 * x))) / 2 for x in (0, 1, 2)]
    assert answer.logits.sigmoid().flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(answer.features[0], images)


def test_a_mirrored_look_is_mirrored_back() -> None:
    """An answer that stays mirrored, which is wrong wherever the image is not symmetric."""
    images = torch.zeros(1, 3, 1, 4)
    images[..., 0] = 1
    answer = Ensemble([Reading(1.0)], flip=(True, False))(images)
    # the bright pixel is in column 0, mirrored in column 3: probabilities 0.5 and sigmoid(3); dark ones say 0.5
    expected = [(0.5 + 1 / (1 + np.exp(-3))) / 2, 0.5, 0.5, 0.5]
    assert answer.logits.sigmoid().flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_mirrors_are_those_that_are_allowed() -> None:
    assert mirrors((False, False)) == ()
    assert mirrors((True, False)) == ((3,),)
    assert mirrors((True, True)) == ((3,), (2,), (2, 3))


def test_logits_come_back_from_probabilities() -> None:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([torch.zeros(2, 1, 4, 5), logits], dim=1)
    assert torch.allclose(logits_of(padded.softmax(dim=1)), logits, atol=1e-5)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """Eleven labelled images of eight cases, two of them with empty masks, two of the images for validation."""
    cases = ["a", "a", "b", "c", "c", "d", "e", "f", "g", "h", "a"]
    parts = ["train"] * 9 + ["val"] * 2
    records = [PreparedRecord(str(n), case, part, 4, 4, None) for n, (case, part) in enumerate(zip(cases, parts))]
    write_prepared_records(tmp_path, records)
    masks = np.ones((11, 4, 4), np.uint8)
    masks[[6, 9]] = 0
    np.save(tmp_path / MASKS, masks)
    write_json(tmp_path / DATASET, {"classes": ["one"]})
    return Prepared(tmp_path)


def test_folds_share_out_all_labels_by_case(prepared: Prepared) -> None:
    """A case cut in two, a label that no fold or two folds hold, or all empty masks in one fold."""
    folds = [held_out_rows(prepared, fold, 4, seed=0).tolist() for fold in range(4)]
    assert sorted(row for fold in folds for row in fold) == list(range(11))
    of_case = [{prepared.records[row].case for row in fold} for fold in folds]
    assert all(first.isdisjoint(second) for n, first in enumerate(of_case) for second in of_case[:n])
    assert sum(bool({"e", "h"} & cases) for cases in of_case) == 2
    assert folds != [held_out_rows(prepared, fold, 4, seed=1).tolist() for fold in range(4)]


def test_more_members_than_cases_are_refused(prepared: Prepared) -> None:
    with pytest.raises(UserError, match=r"teacher.members=9 needs labels of 9 cases, and the budget has 8"):
        held_out_rows(prepared, 0, 9, seed=0)
