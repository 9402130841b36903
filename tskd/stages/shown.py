"""The images that a teacher is shown, as an input of what is made from its answers."""

from __future__ import annotations

from tskd.artifacts import Artifact


def as_input(shown: Artifact, data: Artifact) -> dict[str, str]:
    """Return what answers depend on beside the prepared data: images of the teacher's own size, where it is another."""
    return {} if shown.path == data.path else {"teacher_images": shown.digest}
