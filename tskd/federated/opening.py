"""Opening a federated run: what settings and data do not allow is said before anything is trained or sent."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tskd.data.prepared import Prepared
from tskd.deploy.bundle import FOLDER, require_ours
from tskd.errors import UserError, require_folder
from tskd.experiment.run import Run
from tskd.extras import EXTRAS, install
from tskd.recipe.schema import AVERAGING, PHANTOMS, FederatedConfig, PrivacyConfig, Recipe
from tskd.stages import leaks
from tskd.stages.scoring import Scoring

if TYPE_CHECKING:
    from tskd.engine import Runtime
    from tskd.federated.link import Door
    from tskd.federated.run import FederatedRun
    from tskd.federated.server_run import ServerRun
    from tskd.federated.site import Site

METHODS = ("teacher", "task_kd")
"""Methods that need no label where the student learns."""


def make_run(recipe: Recipe, *place: Any, **more: Any) -> Run:
    """Return the run of a recipe, which is a federated one where the recipe has that section."""
    if recipe.federated is None:
        return Run(recipe, *place, **more)
    from tskd.federated.run import FederatedRun

    check_federated(recipe)
    return FederatedRun(recipe, *place, **more)


def open_federated(
    recipe: Recipe, out: Path, *, minutes: float | None = None, download: bool = False, backend: str = "here"
) -> FederatedRun:
    """Return the run of a federated recipe in a folder; UserError where settings or networks cannot be used."""
    from tskd.federated.run import FederatedRun

    runtime = _runtime(recipe, out, minutes=minutes)
    return FederatedRun(recipe, out, runtime, download, backend=backend)  # type: ignore[arg-type]


def open_server(
    recipe: Recipe, out: Path, door: Door, *, minutes: float | None = None, download: bool = False
) -> ServerRun:
    """Return the run of the server of a federation on several machines; UserError as :func:`open_federated`."""
    runtime = _runtime(recipe, out, minutes=minutes, apart=True)
    from tskd.federated.server_run import ServerRun

    return ServerRun(recipe, out, runtime, download, door=door)


def open_site(recipe: Recipe, name: str, out: Path, *, download: bool = False) -> Site:
    """Return a site of a federation on several machines, its data prepared; UserError as :func:`open_federated`."""
    federated = recipe.federated
    if federated is not None and name not in federated.sites:
        raise UserError(f"--site {name}: the recipe has the sites {', '.join(sorted(federated.sites))}.")
    runtime = _runtime(recipe, out, apart=True)
    from tskd.federated.site import Site

    site = Site(name, recipe, out, runtime, download)
    if not site.labelled:
        raise UserError(f"site {name}: there is no labelled image to train on in {recipe.site_data(name).root}.")
    return site


def _runtime(recipe: Recipe, out: Path, *, minutes: float | None = None, apart: bool = False) -> Runtime:
    """Return what it runs on, once nothing of the settings, the folder and the networks speaks against it."""
    if recipe.federated is None:
        raise UserError(
            "The recipe has no section federated: name the sites and their data, federated.sites.NAME.root, and the "
            "images that all share, federated.transfer.root. `tskd recipes` lists examples."
        )
    check_federated(recipe, apart=apart)
    require_folder(out)
    require_ours(out / FOLDER)
    from tskd.engine import open_runtime
    from tskd.experiment.preflight import check_networks

    check_networks(recipe)
    return open_runtime(recipe.engine, minutes=minutes)


def check_federated(recipe: Recipe, *, apart: bool = False) -> None:
    """Raise UserError for settings that no federation can work by, and where the extra is not installed.

    ``apart``: the sites' data lie on other machines, under whatever names they have there.
    """
    federated = recipe.federated
    assert federated is not None
    if find_spec("flwr") is None:
        raise UserError(
            f"The section federated needs the part of tskd for {EXTRAS['federated'].purpose} (flwr is not installed): "
            f"{install('federated')}"
        )
    if recipe.method not in METHODS or recipe.baselines:
        raise UserError(
            f"federated: the method is {recipe.method!r}{' with baselines' if recipe.baselines else ''}, and the "
            f"server has no labels. Choose the method {' or '.join(METHODS)} and no baselines; what it is held against "
            "are the strategies alone and pooled."
        )
    several = recipe.teacher.members > 1 or recipe.teacher.beside or recipe.teacher.mirror
    settings = (recipe.data, recipe.transfer_data, *map(recipe.site_data, federated.sites))
    if any(data.tile is not None for data in settings):
        raise UserError("data.tile: sites of a federation learn from whole images. Leave it out.")
    if any(kind.unlabelled for kind in recipe.teacher.kinds):
        raise UserError("teacher.unlabelled: the teachers of a federation learn from labels alone. Leave it out.")
    if federated.strategy in AVERAGING and several:
        raise UserError(
            f"federated.strategy={federated.strategy} averages one teacher: leave teacher.members, beside and mirror "
            "out, or take feddistill."
        )
    if recipe.evaluate.data is not None:
        raise UserError("evaluate.data: a federation is tested at its sites. Leave it out, or name the data as a site.")
    if recipe.transfer.synthetic or recipe.transfer.augmented:
        raise UserError(
            "transfer.synthetic, transfer.augmented: the server has no labelled images to make others of. Leave them "
            "out; federated.transfer may name a folder of synthetic images."
        )
    if recipe.engine.devices * recipe.engine.num_nodes > 1:
        raise UserError("engine.devices, engine.num_nodes: a site has one device. Leave them at 1.")
    _refuse_privacy_of_nothing(federated)
    if apart:
        _refuse_what_sends_nothing(recipe, federated)
    else:
        _refuse_shared_sources(recipe)


def _refuse_privacy_of_nothing(federated: FederatedConfig) -> None:
    """Raise UserError for settings of privacy where nothing is sent that they protect, or too few sites to hide in."""
    if federated.strategy not in AVERAGING and federated.privacy != PrivacyConfig():
        raise UserError(
            f"federated.privacy: of {federated.strategy} no teacher's tensors are sent that it could protect. "
            f"Leave the section out, or take {', '.join(AVERAGING)}."
        )
    if federated.privacy.secure_aggregation and len(federated.sites) == 1:
        raise UserError(
            "federated.privacy.secure_aggregation: the sum over a single site is its update. Name two sites or more, "
            "or set it to false."
        )


def _refuse_what_sends_nothing(recipe: Recipe, federated: FederatedConfig) -> None:
    """Raise UserError for what makes no sense over machines."""
    if federated.strategy not in (*AVERAGING, "feddistill"):
        raise UserError(
            f"federated.strategy={federated.strategy}: nothing is sent between machines by it. Choose one of "
            f"{', '.join(AVERAGING)}, feddistill; a site by itself is `tskd run`."
        )
    if federated.strategy == "feddistill" and recipe.method == "teacher":
        raise UserError("federated.strategy=feddistill teaches a student, and the method is 'teacher'. Take task_kd.")


def _refuse_shared_sources(recipe: Recipe) -> None:
    """Raise UserError where two sites read the same part of a folder, or draw the same phantoms."""
    assert recipe.federated is not None
    sources: dict[tuple[Any, ...], str] = {}
    data = {f"sites.{name}": recipe.site_data(name) for name in recipe.federated.sites}
    for name, one in {**data, "transfer": recipe.transfer_data}.items():
        drawn = one.root == PHANTOMS
        part = one.model_dump_json(include={"where"})
        source = (one.phantom.family, one.split_seed) if drawn else (Path(one.root).expanduser().resolve(), part)
        if (other := sources.setdefault(source, name)) != name:
            remedy = "another split_seed" if drawn else "a root of its own, or a part of it (where)"
            raise UserError(
                f"federated.{name} and federated.{other} have the same images. Give each {remedy}: what one learns "
                "from must not be what another is tested on."
            )


def require_alike(run: FederatedRun) -> None:
    """Raise UserError where the data of sites cannot be scored as one, or one has seen what another is tested on.

    Only where all data lie on one machine can images be compared across sites.
    """
    prepared = {name: Prepared(site.own.prepared_artifact.path) for name, site in run.sites.items()}
    kinds = {name: (one.classes, _scored(one)) for name, one in prepared.items()}
    (first, (classes, scored)), *others = kinds.items()
    if run.prepared.classes != classes:
        raise UserError(
            f"federated.transfer has the classes {', '.join(run.prepared.classes)}, site {first} has "
            f"{', '.join(classes)}. Name them once for all with data.classes."
        )
    for name, (its, how) in others:
        if its != classes:
            raise UserError(
                f"site {name} has the classes {', '.join(its)}, site {first} has {', '.join(classes)}: they must be "
                "the same, in one order. Name them with data.classes, or in the dataset.yaml of a site."
            )
        if how != scored:
            raise UserError(
                f"site {name} is scored by {how[0]} in {how[1]}, site {first} by {scored[0]} in {scored[1]}: a mean "
                "over both says nothing. State pixel spacings, and volumes in split.csv, at all sites or at none."
            )
    if run.recipe.data.allow_duplicates:
        return
    for one, other in permutations(prepared, 2):
        if shared := leaks.seen_images(prepared[one], prepared[other]):
            raise _leak(shared, f"site {other}", f"site {one}")
    for name, one_site in prepared.items():
        if shared := leaks.seen_images(run.prepared, one_site):
            raise _leak(shared, f"site {name}", "federated.transfer")


def _leak(count: int, tested: str, seen: str) -> UserError:
    return UserError(
        f"{count} test images of {tested} are among the training images of {seen}; its scores would be too good. Take "
        "the copies out of one of the two, or set data.allow_duplicates=true."
    )


def _scored(prepared: Prepared) -> tuple[str, str]:
    scoring = Scoring.of(prepared)
    level: Any = "volume" if scoring.stacks else "image"
    return f"{level}s", scoring.units[level]
