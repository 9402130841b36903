"""The commands. Heavy imports are inside them, so that ``--help`` answers at once."""

from __future__ import annotations

import io
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

from tskd import __version__
from tskd.console import met, open_missing_streams, printable, say
from tskd.errors import Paused, RunFailed, UserError, refused_by_system, require_folder, until_terminated
from tskd.extras import telling_what_is_missing

if TYPE_CHECKING:
    from tskd.experiment.run import Run
    from tskd.recipe.files import Change
    from tskd.recipe.schema import DataConfig, Recipe

typer.core.HAS_RICH = False  # typer would write "\\[required]" for rich, which takes two thirds of the start-up
app = typer.Typer(
    name="tskd",
    help="Turn a vision foundation model and a few dozen labelled medical images into a small segmentation model.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

federate = typer.Typer(
    help="Train one model at several sites, without an image leaving any of them.", no_args_is_help=True
)
app.add_typer(federate, name="federate")

AUTO = "auto"
"""The recipe that is chosen rather than read, as where a data folder and no recipe are given."""
SLOW_TO_START = {"demo", "run", "stage", "compare", "export", "federate"}
"""Commands that load PyTorch: they say so, because it takes seconds in which nothing else can be said."""
RUNTIME_VARIABLE = "TSKD_ONNXRUNTIME_WEB"
"""Environment variable that names the folder of an unpacked onnxruntime-web, as ``--runtime`` does."""
INTERRUPTED = 130
"""Exit code of a command stopped by Ctrl-C, as shells have it."""
_GOES_ON = "what is finished is kept, the same command goes on"
_AFTER_STOP = {
    "predict": "what is finished is kept, predict begins anew with --overwrite",
    "score": "nothing is kept",
    "serve": "nothing is kept but saved corrections",
}


def _require_number(given: float | None) -> float | None:
    """Refuse NaN, which a range lets pass: it is neither below the least nor above the most."""
    if given is not None and math.isnan(given):
        raise typer.BadParameter("nan is not a number.")
    return given


Executor = Literal["local", "ray"]
Backend = Literal["here", "ray"]
DicomSeg = Literal["binary", "labelmap", "none"]
Out = Annotated[Path, typer.Option("--out", help="Folder for results; an interrupted run in it is resumed.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Change one setting: section.key=value. May be repeated.")]
Data = Annotated[str | None, typer.Option("--data", help="Data folder, or 'phantoms' (the default).")]
RecipeFile = Annotated[
    str | None,
    typer.Argument(
        help="Name (see tskd recipes) or YAML file of settings; auto, or none with --data: chosen for the data."
    ),
]
Transfer = Annotated[
    str | None, typer.Option("--transfer", help="Folder of the images that all share; no site's patients.")
]
Minutes = Annotated[
    float | None,
    typer.Option("--minutes", min=0, callback=_require_number, help="Pause after so long; the same command goes on."),
]
Download = Annotated[
    bool, typer.Option("--download", help="Allow fetching SAM's weights; nothing is fetched otherwise.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and for how long.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"tskd {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command()
def demo(out: Out = Path("out/demo"), json_: Json = False) -> None:
    """Show the whole method on built-in phantoms. Offline, no downloads, seven minutes on two cores.

    Example: tskd demo --out out/demo
    """
    from tskd.experiment.demo import demo_recipe

    _execute(_open_run(demo_recipe(), out), json_=json_)


@app.command()
def run(
    recipe: RecipeFile = None,
    data: Data = None,
    out: Out = Path("out"),
    set_: Set = None,
    minutes: Minutes = None,
    target: Annotated[
        float | None,
        typer.Option("--target-minutes", min=1, help="Without a recipe: target duration in minutes; 30."),
    ] = None,
    dry_run: DryRun = False,
    download: Download = False,
    json_: Json = False,
) -> None:
    """Run the whole method on your data. Teacher, distillation, fine-tuning, scores, export.

    Without a recipe, settings are chosen by the data, the weights at hand and this machine, each with its reason.

    Example: tskd run --data my_images --target-minutes 30 --out out/first
    """
    if dry_run:  # one process can tell, and none is started for it
        set_ = [*(set_ or []), "engine.devices=1", "engine.num_nodes=1"]
    loaded, keep = _load_or_choose(recipe, data, set_, out, target)
    opened = _open_run(loaded, out, minutes=minutes, download=download)
    if dry_run:
        from tskd.experiment.outlook import expect

        outlook = expect(opened.recipe)
        print(json.dumps(outlook.as_dict()) if json_ else outlook)
    else:
        _execute(opened, json_=json_, begins=keep)


@app.command()
def stage(
    name: Annotated[
        str,
        typer.Argument(
            help="prepare, teacher, diffusion, samples, transfer, quality, cache, distill, pretrain, finetune, "
            "control, unet, unet_imagenet, evaluate, doubt or export"
        ),
    ],
    recipe: RecipeFile = None,
    data: Data = None,
    out: Out = Path("out"),
    set_: Set = None,
    minutes: Minutes = None,
    download: Download = False,
    count: Annotated[int | None, typer.Option(min=0, help="Short for --set transfer.synthetic=COUNT.")] = None,
) -> None:
    """Run one stage and what it needs; print its folder.

    Example: tskd stage teacher --data my_images --set teacher.rank=16 --out out/first
    """
    from tskd.experiment.pipeline import run_stage

    if count is not None:
        set_ = [*(set_ or []), f"transfer.synthetic={count}"]
    loaded, keep = _load_or_choose(recipe, data, set_, out)
    opened = _open_run(loaded, out, minutes=minutes, download=download)
    keep()
    artifact = run_stage(opened, name)
    if opened.runtime.fabric.is_global_zero:
        print(artifact.path if artifact else f"{name}: this recipe does without it")


@app.command()
def compare(
    grid: Annotated[str, typer.Argument(help="Name (see tskd recipes) or YAML file: name, recipe, axes.")],
    data: Data = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; out/compare/NAME where it is left out.")] = None,
    set_: Set = None,
    executor: Annotated[Executor, typer.Option(help="local: processes of this machine; ray: a Ray cluster.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at a time.")] = None,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; without it one is started here.")] = None,
    cpus: Annotated[float, typer.Option(min=0, callback=_require_number, help="Ray: CPUs of one run.")] = 1.0,
    gpus: Annotated[
        float, typer.Option(min=0, callback=_require_number, help="Ray: GPUs of one run; 0.25: four runs share one.")
    ] = 0.0,
    retries: Annotated[int, typer.Option(min=0, help="Ray: how often a run is tried again whose machine failed.")] = 2,
    dry_run: DryRun = False,
    tables_only: Annotated[bool, typer.Option("--tables-only", help="Only write the tables of what is done.")] = False,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Look at finished runs again: data or code changed.")
    ] = False,
    download: Download = False,
    json_: Json = False,
) -> None:
    """Run a grid of methods, data sets, budgets, seeds and settings. Tests the differences; exit 1 if a run failed.

    Example: tskd compare smoke --workers 2
    """
    from tskd.comparison.grid import load_grid
    from tskd.recipe.built_in import find_grid

    found = load_grid(find_grid(grid), _changes(data, set_))
    from tskd.comparison import workflow as command
    from tskd.comparison.summary import plan_as_json, print_comparison, print_plan

    out = out or Path("out/compare") / found.name
    require_folder(out)
    machines = command.Machines(executor, workers, address, cpus, gpus, retries)
    if executor == "local" and machines != command.Machines(workers=workers):
        raise UserError("--address, --cpus, --gpus and --retries are for --executor ray: add it, or leave them out.")
    if dry_run:
        plans, estimator = command.plan_comparison(found, out, download=download, recheck=recheck)
        if json_:
            print(plan_as_json(found, plans, estimator, workers=machines.at_once))
        else:
            print_plan(found, plans, estimator, workers=machines.at_once)
        return
    if tables_only:
        comparison = command.collect(found, out)
    else:
        comparison = command.compare(found, out, machines, download=download, recheck=recheck)
    if json_:
        print((out / command.COMPARISON).read_text(encoding="utf-8"), end="")
    else:
        print_comparison(comparison)
    raise SystemExit(1 if comparison.failures else 0)


@federate.command()
def simulate(
    recipe: Annotated[str, typer.Argument(help="Name (see tskd recipes) or YAML file with a section federated.")],
    site: Annotated[
        list[str] | None, typer.Option("--site", help="NAME=FOLDER: a site and its data folder. May be repeated.")
    ] = None,
    transfer: Transfer = None,
    out: Out = Path("out/federated"),
    set_: Set = None,
    backend: Annotated[
        Backend, typer.Option(help="here: sites by turns in this process; ray: Flower's simulation, processes of Ray.")
    ] = "here",
    minutes: Minutes = None,
    download: Download = False,
    json_: Json = False,
) -> None:
    """Try a federation out on this machine. Every site's data lie here; what would be sent is sent as the same bytes.

    Example: tskd federate simulate smoke --out out/federated
    """
    from tskd.federated.opening import open_federated
    from tskd.recipe.files import as_site

    loaded = _federation(recipe, transfer, set_, [*map(as_site, site or [])])
    opened = open_federated(loaded, out, minutes=minutes, download=download, backend=backend)
    from tskd.federated.pipeline import execute
    from tskd.federated.summary import print_federation

    found = execute(opened)
    if json_:
        print(json.dumps(found.as_dict(), default=str))
    else:
        print_federation(found, out)


@federate.command()
def keys(
    folder: Annotated[Path, typer.Argument(help="Folder for the files.")],
    host: Annotated[
        list[str] | None, typer.Option("--host", help="Name or address that sites reach the server by. Several: again.")
    ] = None,
    site: Annotated[str | None, typer.Option("--site", help="Name of the site in the recipe.")] = None,
) -> None:
    """Make the server's certificate (--host) or a site's key pair (--site). Prints the file to hand to the other side.

    Example: tskd federate keys keys --host fed.example.org

    Example: tskd federate keys keys --site north
    """
    if bool(host) == bool(site):
        raise UserError("Give --host NAME on the server's machine, or --site NAME on a site's.")
    from tskd.federated.keys import make_certificate, make_site_key

    shown, secret = make_certificate(folder, host) if host else make_site_key(folder, str(site))
    say(f"{secret} stays on this machine; hand {shown.name} to {'every site' if host else 'whoever runs the server'}")
    print(shown)


@federate.command()
def server(
    recipe: Annotated[str, typer.Argument(help="Name (see tskd recipes) or YAML file with a section federated.")],
    keys: Annotated[
        Path, typer.Option("--keys", help="Folder with server.crt, server.key, and NAME.pub of every site.")
    ],
    transfer: Transfer = None,
    out: Out = Path("out/server"),
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.")] = 9092,
    set_: Set = None,
    minutes: Minutes = None,
    download: Download = False,
    json_: Json = False,
) -> None:
    """Lead a federation of sites on other machines. By TLS, to sites with registered keys; it sees no image of theirs.

    Example: tskd federate server fed.yaml --keys keys --transfer shared --out out/server
    """
    from tskd.federated.link import Door
    from tskd.federated.opening import open_server

    opened = open_server(
        _federation(recipe, transfer, set_), out, Door(host, port, keys), minutes=minutes, download=download
    )
    from tskd.federated.server_run import serve
    from tskd.federated.summary import print_served

    with until_terminated():
        found = serve(opened)
    if json_:
        print(json.dumps(asdict(found)))
    else:
        print_served(found, out)


@federate.command(name="site")
def join(
    recipe: Annotated[str, typer.Argument(help="The recipe that the server has, as a name or a YAML file.")],
    name: Annotated[str, typer.Option("--site", help="Which of the recipe's sites this is.")],
    server: Annotated[str, typer.Option("--server", help="HOST:PORT of the server.")],
    keys: Annotated[Path, typer.Option("--keys", help="Folder with the server's server.crt and this site's NAME.key.")],
    data: Annotated[str | None, typer.Option("--data", help="This site's data folder.")] = None,
    transfer: Transfer = None,
    out: Out = Path("out/site"),
    set_: Set = None,
    download: Download = False,
) -> None:
    """Take part in a federation as one site. Its images stay here; it asks the server for work until all is done.

    Example: tskd federate site fed.yaml --site north --data /data/north --keys keys --server fed.example.org:9092
    """
    from tskd.federated.opening import open_site
    from tskd.recipe.files import Change

    changes: list[str | Change] = [] if data is None else [Change(f"federated.sites.{name}.root", data)]
    opened = open_site(_federation(recipe, transfer, set_, changes), name, out, download=download)
    from tskd.federated.attend import attend_as

    with until_terminated():
        attend_as(opened, server, keys)


def _federation(
    recipe: str, transfer: str | None, overrides: list[str] | None, changes: list[str | Change] | None = None
) -> Recipe:
    """Return a federated recipe with the shared images' folder, and further changes."""
    from tskd.recipe.built_in import find_federation
    from tskd.recipe.files import Change
    from tskd.recipe.schema import load_recipe

    shared = [] if transfer is None else [Change("federated.transfer.root", transfer)]
    return load_recipe(find_federation(recipe), [*(changes or []), *shared, *(overrides or [])])


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="Data folder.")],
    layout: Annotated[
        str | None, typer.Option(help="Short for --set data.layout=LAYOUT; auto goes by the folder names.")
    ] = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Look at a data folder and name every problem. Exit 0 if it can be used, 2 if not.

    Example: tskd check my_images
    """
    from tskd.console import counting, screen

    with counting("check") as count, _told_as_json(json_, _no_report):
        config = _reading(set_, layout, "check", "where")  # it looks at all of a folder
        from tskd.data.check import inspect
        from tskd.data.layouts import LayoutOptions

        report = inspect(data, config.layout, progress=count, options=LayoutOptions.of(config.model_dump()))
    if json_:
        print(json.dumps(report.to_json()))
    else:
        report.render(screen())
    raise SystemExit(0 if report.usable else 2)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of a finished run or comparison.")],
) -> None:
    """Write the report again: one HTML file, to be read offline. Prints its path.

    Example: tskd report out/first
    """
    from tskd.report import write_report

    print(write_report(folder))


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Output folder of a finished run, or the bundle in it.")],
    int8: Annotated[
        bool | None,
        typer.Option("--int8/--no-int8", help="Add an int8 network if it is faster and as good; else: as in the run."),
    ] = None,
    site: Annotated[
        str | None, typer.Option(help="Of a simulated federation: the bundle that this site has in the end.")
    ] = None,
    web: Annotated[
        Path | None, typer.Option(help="Write a page that runs the bundle's network in a browser to this folder.")
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(envvar=RUNTIME_VARIABLE, help="With --web: folder of an unpacked onnxruntime-web (npm)."),
    ] = None,
) -> None:
    """Write the bundle of a finished run again, or with --web as a static page. Prints the folder.

    The bundle is checked against the network on real cases. The page is made from the bundle as it is. Of a simulated
    federation the bundle of its one student, by the images of all sites, or that of a site by its own.

    Example: tskd export out/first --int8

    Example: tskd export out/federated --site north

    Example: tskd export out/first/model --web site
    """
    if web is not None:
        if int8 is not None:
            raise UserError("--web takes a bundle as it is. For its int8 network give the file: MODEL/model.int8.onnx.")
        if site is not None:
            raise UserError(f"--web takes a bundle: write that of the site first (tskd export {model} --site {site}).")
        from tskd.deploy.bundle import open_bundle
        from tskd.deploy.web import write_web

        print(write_web(open_bundle(model), web, runtime=runtime))
        return
    from tskd.run_file import is_federated

    if site is not None or is_federated(model):
        from tskd.federated.bundle import export_simulation

        print(export_simulation(model, site, int8=int8))
        return
    from tskd.stages.export import export_again

    print(export_again(model, int8=int8))


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Bundle (OUT/model of a run), or the run's output folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    inputs: Annotated[
        list[Path] | None, typer.Argument(help="Images, DICOM or NIfTI files, or folders of them.")
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also keep the probabilities.")] = False,
    overlays: Annotated[bool, typer.Option("--overlays", help="Also draw the masks on the images.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there already.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    dicom_seg: Annotated[
        DicomSeg, typer.Option(help="Kind of the DICOM Segmentation that is written of DICOM too; none: not.")
    ] = "binary",
    tile: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Segment larger images in overlapping tiles of so many px, 0: as a whole; default: as it was trained.",
        ),
    ] = None,
    dicomweb: Annotated[str | None, typer.Option(help="URL of a DICOMweb server to fetch a study from.")] = None,
    study: Annotated[str | None, typer.Option(help="StudyInstanceUID of the study to fetch.")] = None,
    send: Annotated[bool, typer.Option("--send", help="Store the DICOM Segmentations on that server.")] = False,
    json_: Json = False,
) -> None:
    """Segment images, DICOM series and NIfTI volumes. On the CPU, offline.

    Example: tskd predict out/first/model scans/ --out masks --overlays
    """
    outcome = None

    def so_far(problem: str) -> dict[str, Any]:
        return (outcome.as_dict() if outcome else {"predictions": [], "failures": []}) | {"error": problem}

    with _told_as_json(json_, so_far):  # the imports too: they take a second in which a script may stop it
        from tskd.deploy.bundle import open_bundle
        from tskd.deploy.looking import handing_over_quickly
        from tskd.deploy.outcome import Outcome
        from tskd.deploy.predict import PredictOptions, predict_paths
        from tskd.deploy.studies import scans_of, send_found

        options = PredictOptions(
            probabilities, overlays, overwrite, threads, None if dicom_seg == "none" else dicom_seg, tile
        )
        outcome = Outcome(())
        written = options.dicom_seg is not None
        with scans_of(inputs or [], dicomweb, study, send=send, segmented=written) as scans, handing_over_quickly():
            predict_paths(open_bundle(model), scans, out, options=options, outcome=outcome)
        if send:
            send_found(dicomweb, out, outcome)
    if json_:
        print(json.dumps(outcome.as_dict()))
    else:
        _tell(outcome.summary(out))
    outcome.require_complete()


@app.command()
def score(
    model: Annotated[Path, typer.Argument(help="Bundle (OUT/model of a run), or the run's output folder.")],
    data: Annotated[Path, typer.Argument(help="Data folder with images and masks, as for training.")],
    out: Annotated[Path, typer.Option(help="Folder for scores, predictions and overlays.")],
    layout: Annotated[
        str | None, typer.Option(help="Short for --set data.layout=LAYOUT; auto goes by the folder names.")
    ] = None,
    set_: Set = None,
    tile: Annotated[
        int | None,
        typer.Option(min=0, help="Segment larger images in tiles of so many px, as `predict --tile` does."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace scores that are there already.")] = False,
    json_: Json = False,
) -> None:
    """Score a model on labelled scans of your own before you use it there. On the CPU, offline, without PyTorch.

    Example: tskd score out/first/model our_scans --out scores
    """
    with _told_as_json(json_, lambda problem: {"error": problem}):
        config = _reading(set_, layout, "score", "window", "axis")  # which the model states
        from tskd.data.layouts import LayoutOptions
        from tskd.deploy.bundle import open_bundle
        from tskd.stages.own_scans import ScoreOptions, render, score_scans

        bundle = open_bundle(model)
        reading = LayoutOptions.of(config.model_dump())
        options = ScoreOptions(config.layout, reading, config.where or {}, tile, overwrite=overwrite)
        found = score_scans(bundle, data, out, options)
    if json_:
        print(json.dumps(found))
    else:
        from tskd.console import screen

        render(found, bundle, screen())
        say(f"every case: {out / 'cases.csv'}; pictures of the worst, median and best: {out / 'overlays'}")
    if failures := found["failures"]:
        files = (
            "1 file could not be read and is"
            if len(failures) == 1
            else f"{len(failures)} files could not be read and are"
        )
        raise UserError(f"{files} not in the scores (named above): `tskd check` says what is wrong with each.")


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="Bundle (OUT/model of a run), or the run's output folder.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    token_file: Annotated[Path | None, typer.Option(help="File with the token; or TSKD_SERVE_TOKEN.")] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Name that clients call the server by; repeatable.")
    ] = None,
    corrections: Annotated[Path | None, typer.Option(help="Data folder that corrected masks are added to.")] = None,
    pool: Annotated[Path | None, typer.Option(help="Folder of unlabelled images, to be listed by doubt.")] = None,
    max_mb: Annotated[int, typer.Option(min=1, help="Size of an upload.")] = 128,
    max_unpacked_mb: Annotated[int, typer.Option(min=1, help="Of a ZIP or .nii.gz; million voxels too.")] = 512,
    max_megapixels: Annotated[
        float, typer.Option(min=0.001, max=64, callback=_require_number, help="Of an image or slice.")
    ] = 25,
    max_slices: Annotated[int, typer.Option(min=1, help="Of a volume.")] = 1000,
    max_seconds: Annotated[
        float, typer.Option(min=0.1, max=86_400, callback=_require_number, help="For an upload, and for its work.")
    ] = 120,
    at_once: Annotated[int, typer.Option(min=1, help="Requests worked on at a time.")] = 2,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; more are told to come again.")] = 8,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of one request.")] = None,
) -> None:
    """Answer over HTTP and show a page. On the CPU, offline, on this machine alone unless told otherwise.

    Example: tskd serve out/first/model --corrections corrected
    """
    from tskd.serve.limits import Limits
    from tskd.serve.start import Address, serve

    limits = Limits(
        upload=max_mb * 2**20,
        unpacked=max_unpacked_mb * 2**20,
        pixels=round(max_megapixels * 1e6),
        slices=max_slices,
        seconds=max_seconds,
        at_once=at_once,
        waiting=queue,
    )
    address = Address(host, port, token_file, tuple(allowed_host or ()))
    serve(model, address, limits, threads=threads, corrections=corrections, pool=pool)


@app.command()
def weights(
    file: Annotated[Path, typer.Argument(help="Weight file (.pth, .pt, .bin, .safetensors, .npz) or its folder.")],
    json_: Json = False,
) -> None:
    """Say what a weight file is, how to use it, its digest and licence. Nothing in it is executed; exit 2 if unusable.

    Example: tskd weights sam_vit_b_01ec64.pth
    """
    from tskd.models.weight_report import as_text, describe

    report = describe(file)
    _tell(json.dumps(report) if json_ else as_text(report))


@app.command()
def recipes() -> None:
    """List the built-in recipes and grids, and what each is for.

    Example: tskd recipes
    """
    from tskd.recipe.built_in import describe_all

    for command, head in describe_all():
        print(f"{command}\n    {head}")


@app.command()
def doctor() -> None:
    """Look at this machine and name what is broken. Libraries, memory, GPU, weights, codecs; exit 1 if anything is.

    Example: tskd doctor
    """
    from tskd.doctor import as_text, examine, is_broken

    checks = examine()
    _tell(as_text(checks))
    raise SystemExit(1 if is_broken(checks) else 0)


@contextmanager
def _told_as_json(json_: bool, answer: Callable[[str], dict[str, Any]]) -> Iterator[None]:
    """With ``--json`` put the ``answer`` to what ends the block on stdout, so that a script always finds an object."""
    try:
        with until_terminated():
            yield
    except (UserError, OSError, KeyboardInterrupt) as error:
        if json_:
            print(json.dumps(answer(_told(error))))
        raise


def _told(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped before the end"
    return refused_by_system(error) if isinstance(error, OSError) else str(error)


def _no_report(problem: str) -> dict[str, Any]:
    """Return what ``check --json`` says of a folder in which there is nothing to look at."""
    return {"usable": False, "problems": [{"path": ".", "message": problem, "remedy": "", "severity": "error"}]}


def _execute(run: Run, *, json_: bool, begins: Callable[[], None] = lambda: None) -> None:
    from tskd.experiment.pipeline import execute
    from tskd.experiment.summary import print_summary

    found = execute(run, begins=begins)
    if not run.runtime.fabric.is_global_zero:
        return
    if json_:
        print(json.dumps(found.summary.as_dict(), default=str))
    else:
        print_summary(found)


def _load(recipe: str | None, data: str | None, overrides: list[str] | None) -> Recipe:
    from tskd.recipe.built_in import find_recipe
    from tskd.recipe.schema import load_recipe

    return load_recipe(None if recipe is None else find_recipe(recipe), _changes(data, overrides))


def _load_or_choose(
    recipe: str | None, data: str | None, overrides: list[str] | None, out: Path, target: float | None = None
) -> tuple[Recipe, Callable[[], None]]:
    """Return the recipe that is named, or the one that the data, the weights at hand and this machine suggest; and what
    writes the choices down."""
    from tskd.recipe.files import as_change
    from tskd.recipe.schema import names_folder

    changes = [as_change(one) for one in _changes(data, overrides)]
    if recipe == AUTO and not names_folder(changes):
        raise UserError(f"tskd run {AUTO} looks at your data: give its folder with --data.")
    if recipe not in (AUTO, None) or not names_folder(changes):
        if target is not None:
            raise UserError("--target-minutes chooses settings, and a recipe has its own: tskd run --data FOLDER")
        return _load(recipe, data, overrides), lambda: None
    require_folder(out)
    from tskd.experiment.configure import configure

    return configure(changes, out, minutes=target)


def _changes(data: str | None, overrides: list[str] | None) -> list[str | Change]:
    from tskd.recipe.files import Change

    return [*(overrides or []), *([] if data is None else [Change("data.root", data)])]


def _open_run(recipe: Recipe, out: Path, *, minutes: float | None = None, download: bool = False) -> Run:
    from tskd.experiment.opening import open_run

    return open_run(recipe, out, minutes=minutes, download=download)


def _reading(overrides: list[str] | None, layout: str | None, command: str, *others: str) -> DataConfig:
    """Return how images are read; UserError for a setting that says nothing about it, or is one of ``others``."""
    from tskd.recipe.schema import SourceConfig

    stated = [*(overrides or []), *([] if layout is None else [f"data.layout={layout}"])]
    config = _load(None, None, stated).data
    known = [f"data.{name}" for name in SourceConfig.model_fields if name not in ("root", "phantom", *others)]
    if idle := [key for one in stated if (key := one.partition("=")[0].strip()) not in known]:
        raise UserError(f"{command} does not use {', '.join(idle)}. It takes {', '.join(known)}.")
    return config


def _require_no_gap(arguments: Sequence[str]) -> None:
    """Raise UserError for an empty argument, as an unset variable gives; as a path it means the current folder."""
    for place, argument in enumerate(arguments):
        if argument == "" or (argument.startswith("--") and argument.find("=") == len(argument) - 1):
            named = f"{argument[:-1]} is empty" if argument else f"argument {place + 1} is empty"
            raise UserError(f"{named}: {shlex.join(['tskd', *arguments])}. Is a variable of the shell not set?")


def main(arguments: list[str] | None = None) -> Any:
    """Run a command; exit 0 done (or paused as asked), 1 failed, 2 wrong input or settings, 130 stopped by Ctrl-C."""
    open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter stops no work
    given = sys.argv[1:] if arguments is None else arguments
    for argument in given:
        met(argument)
    _say_what_loads(given)
    try:
        _require_no_gap(given)
        with telling_what_is_missing(" ".join(["tskd", *given[:1]])):
            return app(arguments)
    except UserError as error:
        _stop(f"error: {error}", code=2)
    except RunFailed as error:
        _stop(f"failed: {error}", code=1)
    except OSError as error:
        _stop(f"error: {refused_by_system(error)}", code=1)
    except Paused as pause:
        _stop(f"{pause}; the state is saved, the same command goes on from here", code=0)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer's answer to Ctrl-C
            _stop(f"stopped; {_AFTER_STOP.get(''.join(given[:1]), _GOES_ON)}", code=INTERRUPTED)
        raise


def _say_what_loads(given: list[str]) -> None:
    """Say why nothing is said for seconds; where PyTorch is loaded already or is not there, there is no wait."""
    if not SLOW_TO_START.intersection(given[:1]) or {"-h", "--help", "--web"}.intersection(given):
        return
    if "torch" not in sys.modules and find_spec("torch") is not None:
        say(f"{given[0]}: loading libraries, a few seconds")


def _tell(text: str) -> None:
    print(printable(text))


def _stop(message: str, *, code: int) -> None:
    print(printable(message), file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
