"""The HTTP interface: segmentation for programs, open files for the page, corrections; see docs/how-to/serve.md."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from tskd import __version__
from tskd.data.intensity import IntensityWindow
from tskd.data.memory_files import MemoryFolder
from tskd.data.png import packed, without_idle_colours
from tskd.deploy.bundle import Bundle
from tskd.deploy.card import card_html
from tskd.errors import UserError
from tskd.overlays import class_colour
from tskd.serve.accept import preferred
from tskd.serve.corrections import Corrections, name_of, not_saved
from tskd.serve.gate import Gate
from tskd.serve.guard import Access, Guard
from tskd.serve.limits import Limits, Refused
from tskd.serve.metrics import Metrics
from tskd.serve.pool import Candidate as PoolCandidate
from tskd.serve.pool import Pool
from tskd.serve.segment import FORMS, JSON, NIFTI, PNG, SEG, Found, Segmented, Segmenter, in_form
from tskd.serve.uploads import TYPES, receive
from tskd.serve.views import View, Views

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it remarks on what uploads hold

STATIC = Path(__file__).parent / "static"
EXAMPLES = {path.stem: path for path in sorted((Path(__file__).parent / "examples").glob("*.webp"))}
"""One phantom of each family, drawn beforehand: drawing takes scipy, which is not in the light part."""
_SHOWN_CANDIDATES = 10
_OTHER_NAMES = {"application/gzip": NIFTI, "application/nifti": NIFTI, "application/vnd.nifti": NIFTI}


class Problem(BaseModel):
    """Why a request is not done."""

    error: str


class ModelInfo(BaseModel):
    """What the model is."""

    classes: list[str]
    colours: list[list[int]] = Field(description="Red, green and blue of each class on the page.")
    dataset: str
    model_sha256: str
    version: str = Field(description="Of tskd.")
    card: str = Field(description="The model card, Markdown.")
    card_html: str
    corrections: bool = Field(description="Whether corrections can be saved.")
    pool: bool
    examples: list[str] = Field(description="Of drawn images; none is a patient's.")
    types: str
    upload_bytes: int


class Opened(BaseModel):
    """A file that is open for the page."""

    view: str
    found: Found
    values: tuple[float, float] | None = Field(description="Range for a window; null: 8-bit, shown as it is.")
    window: tuple[float, float] | None = Field(description="The window of the first slice as the network saw it.")
    forms: list[str] = Field(description="Media types that it can be downloaded in.")


class Candidate(BaseModel):
    """An image to label."""

    number: int
    name: str
    doubt: float


class Candidates(BaseModel):
    """What to label next, the most doubtful first."""

    left: int = Field(description="Images that were not looked at yet.")
    next: list[Candidate]


class SavedCorrection(BaseModel):
    """Where a correction is kept."""

    id: str
    replaced: bool = Field(description="Whether an earlier mask was moved to earlier_masks.")


@dataclass
class Service:
    """Everything one server holds."""

    bundle: Bundle
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    threads: int | None = None
    corrections: Corrections | None = None
    pool_folder: Path | None = None

    def __post_init__(self) -> None:
        self.segmenter = Segmenter(self.bundle, self.limits, self.threads)
        self.metrics = Metrics()
        self.gate = Gate(self.limits, self.metrics)
        self.views = Views(self.limits)
        self.pool: Pool | None = None
        if self.pool_folder is not None and self.corrections is not None:
            self.pool = Pool(self.pool_folder, self.segmenter, self.corrections, self.gate.is_quiet)

    def segment(self, name: str, content: bytes) -> Segmented:
        """Return what is found in an upload, whose files stay in memory until its folder is closed."""
        return self._segmented(receive(name, content, self.limits), self.segmenter.segment)

    def _segmented(self, folder: MemoryFolder, segment: Callable[[MemoryFolder], Segmented]) -> Segmented:
        """Do the same for files in memory."""
        with closed_on_error(folder):
            done = segment(folder)
        self.metrics.slices.inc(len(done.planes))
        return done

    def answer(self, name: str, content: bytes, form: str) -> bytes:
        """Return the answer to an upload, of which nothing stays."""
        done = self.segment(name, content)
        with done.folder:
            return in_form(done, form, self.segmenter)

    def open(self, done: Segmented, candidate: PoolCandidate | None = None) -> Opened:
        """Keep an upload open for the page."""
        view = View(done, candidate=candidate)
        forms = [JSON, PNG if done.item.kind == "image" else NIFTI]
        if done.item.slices:
            forms.append(SEG)
        with closed_on_error(done.folder):
            values = view.value_range(self.bundle.axis)
            window = None if values is None else view.window()
        self.views.add(view)  # last: from now on another upload may close it
        return Opened(
            view=view.name,
            found=done.found,
            values=values,
            window=None if window is None else (window.low, window.high),
            forms=forms,
        )

    def open_upload(self, name: str, content: bytes) -> Opened:
        """Segment an upload and keep it open."""
        return self.open(self.segment(name, content))

    def open_example(self, name: str) -> Opened:
        """Segment a drawn image and keep it open."""
        if name not in self.examples:
            raise Refused(404, "There is no such example.")
        drawn = MemoryFolder.of({"upload.webp": EXAMPLES[name].read_bytes()})
        return self.open(self._segmented(drawn, self.segmenter.segment))

    def open_candidate(self, number: int) -> Opened:
        """Segment an image of the pool and keep it open."""
        if self.pool is None:
            raise Refused(404, "There is no pool; start the server with --pool and --corrections.")
        found = self.pool.find(number)
        try:
            image = self.segmenter.read(found.frame)
        except UserError as error:
            raise Refused(422, "The image cannot be read; `tskd check` on its folder says why.") from error
        segment = partial(self.segmenter.segment_seen, spacing=found.frame.spacing)
        return self.open(self._segmented(MemoryFolder.of({"upload.png": png(image)}), segment), found)

    def correct(self, view: View, number: int, mask: np.ndarray) -> SavedCorrection:
        """Add a slice and its corrected mask to the data folder."""
        if self.corrections is None:
            raise Refused(409, "Corrections are not kept; start the server with --corrections DIR.")
        image = view.image(number, None, self.segmenter)
        from_pool = view.candidate
        source = None if from_pool is None else from_pool.source
        case = name_of(self._first_of_case(view))
        try:
            saved = self.corrections.save(image, mask, case=case, source=source)
        except (OSError, UserError) as error:
            raise not_saved(error, self.corrections.root) from error
        self.metrics.saved.inc()
        if self.pool is not None and from_pool is not None:
            self.pool.mark_labelled(from_pool)
        return SavedCorrection(id=saved.id, replaced=saved.replaced)

    def _first_of_case(self, view: View) -> np.ndarray:
        """Return the first slice of an open file or, of the pool, of the volume that the image is from."""
        if view.candidate is None:
            return view.image(0, None, self.segmenter)
        try:
            return self.segmenter.read(view.candidate.first)
        except UserError as error:
            why = "The image cannot be read in the pool any more, so no correction of it is saved."
            raise Refused(422, why) from error

    @property
    def examples(self) -> list[str]:
        """Names of the drawn images: those of the model's own family where it learned from one, else all."""
        own = self.bundle.dataset.removeprefix("phantoms/")
        return [own] if own in EXAMPLES else sorted(EXAMPLES)

    def info(self) -> ModelInfo:
        """Return what the model is."""
        card = self.bundle.card
        return ModelInfo(
            classes=list(self.bundle.classes),
            colours=[list(class_colour(label)) for label in range(1, len(self.bundle.classes) + 1)],
            dataset=self.bundle.dataset,
            model_sha256=self.segmenter.digest,
            version=__version__,
            card=card,
            card_html=card_html(card),
            corrections=self.corrections is not None,
            pool=self.pool is not None,
            examples=self.examples,
            types=TYPES,
            upload_bytes=self.limits.upload,
        )


@contextmanager
def closed_on_error(folder: MemoryFolder) -> Iterator[None]:
    """Close a folder where the block fails: nobody else will."""
    try:
        yield
    except BaseException:
        folder.close()
        raise


def png(pixels: np.ndarray) -> bytes:
    """Return (H, W) or (H, W, 3) uint8 as PNG, packed quickly; what is grey throughout is sent as grey."""
    return packed(without_idle_colours(pixels), quickly=True)


class _InMemory(MultiPartParser):
    """Starlette's parser, which would put what is larger than a megabyte on the disk."""

    spool_max_size = 2**62


async def uploaded(request: Request) -> tuple[str, bytes]:
    """Return name and content of the field ``file``; raises Refused."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused(415, "Send the file as multipart/form-data in the field `file`.")
    try:
        form = await _InMemory(request.headers, request.stream(), max_files=1, max_fields=4).parse()
    except (MultiPartException, FormParserError) as error:  # starlette before 1.4 lets the parser's own pass
        raise Refused(400, "The multipart body is damaged, or holds more than one file.") from error
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Refused(400, "There is no file in the field `file`.")
        return file.filename or "", await file.read()
    finally:
        await form.close()


_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary", "description": TYPES}},
                }
            }
        },
    }
}
_RAW_MASK: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {
                "schema": {
                    "type": "string", "format": "binary", "description": "Class index of every pixel, row by row.",
                }
            }
        },
    }
}  # fmt: skip


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    common = (401, 403, 421)
    return {status: {"model": Problem} for status in (*common, *statuses)}


_OF_UPLOADS = _problems(400, 408, 413, 415, 422, 503, 504)
_FILES: dict[str, Any] = {form: {"schema": {"type": "string", "format": "binary"}} for form in FORMS if form != JSON}
Slice = Annotated[int, Query(ge=0, le=10**6, alias="slice", description="Counted from 0.")]
Level = Annotated[float | None, Query(ge=-1e9, le=1e9)]


def create_app(service: Service) -> Guard:
    """Return the whole application, its guard included."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        if service.pool is not None:
            service.pool.start()
        yield
        if service.pool is not None:
            service.pool.stop()

    app = FastAPI(
        title="tskd", version=__version__, lifespan=life, docs_url=None, redoc_url=None,  # their pages fetch scripts
        description="Segmentation by one model. Research use only; not a medical device.",
        redirect_slashes=False,
    )  # fmt: skip
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _refused_by_framework)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _failed)
    _add_segmentation(app, service)
    _add_views(app, service)
    _add_labelling(app, service)
    _add_rest(app, service)
    return Guard(app, service.access, service.limits, service.metrics)


def _add_segmentation(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/segment",
        response_model=Found,
        responses={200: {"content": _FILES}, **_OF_UPLOADS, **_problems(406)},
        openapi_extra=_UPLOAD,
    )
    async def segment(request: Request) -> Response:
        """Segment one image, volume or zipped DICOM series; nothing of it stays. The form goes by `Accept`."""
        form = form_wanted(request)
        async with service.gate.place():
            name, content = await uploaded(request)
            body = await service.gate.work(partial(service.answer, name, content, form))
        return as_file(body, form)

    @app.get("/v1/model", responses=_problems())
    async def model() -> ModelInfo:
        """Tell what the model is, with its card."""
        return await asyncio.to_thread(service.info)


def _add_views(app: FastAPI, service: Service) -> None:
    @app.post("/v1/views", responses=_OF_UPLOADS, openapi_extra=_UPLOAD)
    async def open_view(request: Request) -> Opened:
        """Segment a file and keep it open in memory, so that slices can be looked at and corrected."""
        async with service.gate.place():
            name, content = await uploaded(request)
            return await service.gate.work(partial(service.open_upload, name, content))

    @app.post("/v1/examples/{name}", responses=_problems(404, 422, 503, 504))
    async def open_example(name: str) -> Opened:
        """Open a drawn image."""
        async with service.gate.place():
            return await service.gate.work(partial(service.open_example, name))

    @app.get("/v1/views/{view}/image", response_class=Response, responses={
        200: {"content": {PNG: _FILES[PNG]}}, **_problems(404, 422, 503),
    })  # fmt: skip
    async def image(view: str, number: Slice = 0, low: Level = None, high: Level = None) -> Response:
        """Return a slice as PNG: by the window from `low` to `high`, else as the network saw it."""
        if (low is None) != (high is None) or (low is not None and high is not None and not low < high):
            raise Refused(422, "A window needs low and high, low below high.")
        window = None if low is None or high is None else IntensityWindow(low, high)

        def shown(found: View) -> bytes:
            return png(found.image(number, window, service.segmenter))

        service.views.find(view)  # what is not there need not wait for its turn
        async with service.gate.place():
            return Response(await service.gate.work(partial(service.views.of, view, shown)), media_type=PNG)

    @app.get("/v1/views/{view}/mask", response_class=Response, responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        **_problems(404, 422),
    })  # fmt: skip
    async def mask(view: str, number: Slice = 0) -> Response:
        """Return the class index of every pixel of a slice, row by row, packed with gzip."""
        found = service.views.find(view)
        plane = found.done.planes[found.place(number)]
        body = await asyncio.to_thread(gzip.compress, plane.tobytes(), 1)
        return Response(body, media_type="application/octet-stream", headers={"content-encoding": "gzip"})

    @app.get("/v1/views/{view}/answer", response_model=Found, responses={
        200: {"content": _FILES}, **_problems(404, 406, 422, 503),
    })  # fmt: skip
    async def answer(view: str, request: Request) -> Response:
        """Return the answer of an open file in the form that `Accept` asks for."""
        form = form_wanted(request)

        def answered(found: View) -> bytes:
            return in_form(found.done, form, service.segmenter)

        service.views.find(view)
        async with service.gate.place():
            return as_file(await service.gate.work(partial(service.views.of, view, answered)), form)

    @app.delete("/v1/views/{view}", status_code=204, response_class=Response, responses=_problems(404, 422))
    async def close(view: str) -> Response:
        """Forget an open file."""
        service.views.close(view)
        return Response(status_code=204)


def _add_labelling(app: FastAPI, service: Service) -> None:
    @app.post("/v1/views/{view}/corrections", responses=_problems(404, 408, 409, 413, 422, 503, 507),
              openapi_extra=_RAW_MASK)  # fmt: skip
    async def correct(view: str, request: Request, number: Slice = 0) -> SavedCorrection:
        """Save a slice with its corrected mask into the data folder of corrections."""
        found = service.views.find(view)
        shape = found.done.planes[found.place(number)].shape
        async with service.gate.place():
            content = await request.body()
            mask = np.frombuffer(content, np.uint8)
            if mask.size != shape[0] * shape[1] or (mask.size and mask.max() > len(service.bundle.classes)):
                raise Refused(422, f"The mask is not {shape[1]}x{shape[0]} bytes of class indices.")

            def corrected(found: View) -> SavedCorrection:
                return service.correct(found, number, mask.reshape(shape))

            return await service.gate.work(partial(service.views.of, view, corrected))

    @app.get("/v1/pool", responses=_problems(404))
    async def pool() -> Candidates:
        """Tell what to label next, ordered by the model's doubt."""
        if service.pool is None:
            raise Refused(404, "There is no pool; start the server with --pool and --corrections.")
        found = service.pool.next(_SHOWN_CANDIDATES)
        listed = [Candidate(number=one.number, name=one.name, doubt=one.doubt or 0) for one in found]
        return Candidates(left=service.pool.left, next=listed)

    @app.post("/v1/pool/{number}", responses=_problems(404, 422, 503, 504))
    async def open_candidate(number: int) -> Opened:
        """Open an image of the pool."""
        async with service.gate.place():
            return await service.gate.work(partial(service.open_candidate, number))


def _add_rest(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", responses=_problems())
    async def health() -> dict[str, str]:
        """Tell that the server answers."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_problems(),
    })  # fmt: skip
    async def metrics() -> Response:
        """Return counts and times for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC))


def form_wanted(request: Request) -> str:
    """Return the form of the answer; raises Refused (406) where the client takes none of :data:`FORMS`."""
    wanted = preferred(request.headers.get("accept", "*/*"), [*FORMS, *_OTHER_NAMES])
    if wanted is None:
        raise Refused(406, f"Ask for one of {', '.join(FORMS)} in `Accept`.")
    return _OTHER_NAMES.get(wanted, wanted)


def as_file(body: bytes, form: str) -> Response:
    """Return an answer with a name for downloads that tells nothing of the upload."""
    headers = {} if form == JSON else {"content-disposition": f'attachment; filename="mask{FORMS[form]}"'}
    return Response(body, media_type=form, headers=headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse({"error": error.why}, error.status, error.headers)


async def _refused_by_framework(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": f"{error.detail}."}, error.status_code, error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}."}, 422)


async def _gone(_: Request, error: Exception) -> Response:
    """Answer nobody: the client broke off its upload. The status is for the counts, and nginx's word for it."""
    return Response(status_code=499)


async def _failed(_: Request, error: Exception) -> Response:
    """Answer for a defect of ours; the guard writes where it is to the log."""
    return JSONResponse({"error": "The request failed by a defect of the server; its log names the place."}, 500)
