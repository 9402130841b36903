from __future__ import annotations

import csv
import io

import pytest

from tskd.cells import harmless, original


@pytest.mark.parametrize(
    "text", ['=HYPERLINK("http://x.example","open")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "'=1"]
)
def test_a_formula_becomes_a_text_and_comes_back(text: str) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerow(harmless({"name": text}).values())
    (cells,) = csv.reader(io.StringIO(file.getvalue(), newline=""))
    assert cells == ["'" + text]
    assert original(cells[0]) == text


@pytest.mark.parametrize("value", ["", "cyst", "-0.5", "+1e-3", -3, 0.25, None, "'quoted'", "a=b", "-inf"])
def test_other_cells_stay_as_they_are(value: object) -> None:
    assert harmless({"name": value}) == {"name": value}
    assert original(str(value)) == str(value)
