from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tskd.seeding import derive, numpy_generator, torch_generator


def test_a_seed_is_the_same_in_every_process_and_version() -> None:
    """The first 8 bytes of the sha256 of the parts joined by the unit separator, without the lowest bit."""
    assert derive(0, "augment", 7) == 4421632452806773943


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(), st.text(alphabet="ab1 ,", max_size=3)), max_size=4))
def test_a_seed_fits_every_generator(parts: list[object]) -> None:
    assert 0 <= derive(*parts) < 2**63
    torch_generator(*parts)
    numpy_generator(*parts)


def test_parts_are_kept_apart() -> None:
    assert derive("ab", "c") != derive("a", "bc")
    assert derive(1, 23) != derive(12, 3)


def test_generators_leave_the_global_streams_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    torch.rand(2, generator=torch_generator(1))
    assert torch.equal(torch.rand(3), expected)
