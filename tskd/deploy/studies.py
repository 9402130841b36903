"""Where scans come from, given paths or a study on a server, and where segmentations go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tskd.console import say, warn
from tskd.deploy.outcome import Outcome
from tskd.errors import UserError


@contextmanager
def scans_of(
    inputs: Sequence[Path], url: str | None, study: str | None, *, send: bool, segmented: bool = True
) -> Iterator[Sequence[Path]]:
    """Yield the paths to predict: the inputs, or a folder with the study, which is removed at the end.

    Raises UserError where it is not clear which of the two is meant, and where there would be nothing to ``send``
    since no DICOM Segmentation is written; before anything is asked of a server.
    """
    if send and not segmented:
        raise UserError("--send stores the DICOM Segmentations, and --dicom-seg none writes none: leave one out.")
    if url is None:
        if study is not None or send:
            raise UserError("--study and --send belong to --dicomweb URL, which says where the study is.")
        if not inputs:
            raise UserError("nothing to predict: give files or folders, or --dicomweb URL --study UID.")
        yield inputs
        return
    if inputs or not study:
        raise UserError("--dicomweb fetches one study: give --study UID with it, and no files or folders.")
    from tskd.deploy.dicomweb import fetch_study

    with TemporaryDirectory(prefix="tskd-") as folder:
        count = fetch_study(url, study, Path(folder))
        say(f"fetched {count} instances")
        yield [Path(folder)]


def send_found(url: str | None, out: Path, outcome: Outcome) -> None:
    """Store the segmentations that were written; raises UserError where the server does not take them."""
    if url is None:
        return
    from tskd.deploy.dicomweb import store

    if not outcome.segmentations:
        warn("there is no DICOM Segmentation to store: none could be written of this study")
        return
    store(url, [out / name for name in outcome.segmentations])
    say(f"stored {len(outcome.segmentations)} DICOM Segmentations")
