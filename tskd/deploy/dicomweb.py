"""Studies from a DICOMweb server and segmentations to it (PS3.18: QIDO-RS, WADO-RS, STOW-RS), by dicomweb-client.

No message quotes what a server says, since it may name a patient.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydicom import dcmread

from tskd.deploy.dicom_out import as_bytes
from tskd.errors import UserError, name_of
from tskd.extras import install
from tskd.machine.listening import is_loopback

if TYPE_CHECKING:
    from dicomweb_client.api import DICOMwebClient

TOKEN, LOGIN = "TSKD_DICOMWEB_TOKEN", "TSKD_DICOMWEB_LOGIN"
"""Environment variables: a bearer token, or ``user:password``."""
_NO_SCANS = ("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "DOC", "AU", "ECG")
_SECONDS = 120


def fetch_study(url: str, study: str, folder: Path) -> int:
    """Write the scans of a study into ``folder``, a folder a series; return how many instances there are.

    Raises UserError where the server cannot be asked, or has no scans of the study.
    """
    client = _client(url)
    count = 0
    with _asking(url):
        for number, series in enumerate(_series(client, study), start=1):
            if _value(series, "00080060") in _NO_SCANS:
                continue
            place = folder / f"series_{number:03d}"
            place.mkdir()
            instances = client.iter_series(study, str(_value(series, "0020000E")))
            for instance, data in enumerate(instances, start=1):
                (place / f"{instance:05d}.dcm").write_bytes(as_bytes(data))
                count += 1
    if not count:
        raise UserError(f"{url}: has no scans of this study. Look at the StudyInstanceUID given with --study.")
    return count


def _series(client: DICOMwebClient, study: str) -> Iterator[dict[str, Any]]:
    """Yield all series of a study, page by page (PS3.18 8.3.4.4); a server may also ignore where a page begins."""
    seen: set[str] = set()
    while True:
        page = client.search_for_series(study, offset=len(seen) or None)
        new = {str(_value(series, "0020000E")): series for series in page}
        new = {uid: series for uid, series in new.items() if uid not in seen}
        yield from new.values()
        if not new:
            return
        seen |= new.keys()


def store(url: str, paths: Sequence[Path]) -> None:
    """Send DICOM files to a server; raises UserError where it does not take all of them."""
    client = _client(url)
    for path in paths:
        with _asking(url):
            answer = client.store_instances([dcmread(path)])
        if answer.get("FailedSOPSequence"):
            raise UserError(
                f"{url}: did not take {path.name}. Its log says why; the file is whole and can be sent again."
            )


def require_safe(url: str) -> None:
    """Raise UserError for a URL over which patients or a token would be readable, or that holds a password."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("--dicomweb must be a URL, e.g. https://server/dicom-web.")
    if parts.username or parts.password:
        raise UserError(f"--dicomweb holds a password, which lists of processes show. Give it in {LOGIN}.")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise UserError(f"{url}: everybody on the way could read patients and token. Use https.")


def _client(url: str) -> DICOMwebClient:
    require_safe(url)
    try:
        from dicomweb_client.api import DICOMwebClient
        from dicomweb_client.session_utils import create_session, create_session_from_user_pass
    except ImportError as error:
        raise UserError(f"DICOMweb needs the extra `dicomweb`: {install('dicomweb')}") from error
    logger = logging.getLogger("dicomweb_client")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    user, colon, password = os.environ.get(LOGIN, "").partition(":")
    session = create_session_from_user_pass(user, password) if colon else create_session()
    token = os.environ.get(TOKEN)
    headers = {"Authorization": f"Bearer {token}"} if token else None
    client = DICOMwebClient(url.rstrip("/"), session=session, headers=headers, timeout=_SECONDS)
    client.set_http_retry_params(retry=False)  # half a minute of silence where the server is not there
    return client


@contextmanager
def _asking(url: str) -> Iterator[None]:
    from requests import HTTPError, RequestException

    try:
        yield
    except HTTPError as error:
        status = error.response.status_code
        remedy = f" Give {TOKEN} or {LOGIN}." if status in (401, 403) else ""
        raise UserError(f"{url}: answered with status {status}.{remedy}") from None
    except RequestException as error:
        raise UserError(
            f"{url}: cannot be reached ({name_of(error)}). Is the server running, and the URL right?"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{url}: does not answer as DICOMweb does ({name_of(error)}). Look at the URL.") from None


def _value(series: dict[str, Any], tag: str) -> Any:
    return next(iter(series.get(tag, {}).get("Value", [])), None)
