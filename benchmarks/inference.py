"""What an answer costs: students as they are shipped against the networks that they replace, in one run, as ratios.

    python benchmarks/inference.py [OUT ...] [--sides 256 512] [--rounds 9]
    python benchmarks/inference.py OUT --folder 400 2000     # `tskd predict` of folders of so many JPEGs of 512 px

Random weights cost what trained ones do, so every network is built here: ViT-Tiny and the U-Net over EfficientNet-Lite0
as students, float and int8; the U-Net of nnU-Net's size; the teacher's ensemble (three networks, mirrored images); SAM
ViT-B's encoder and MobileSAM's (TinyViT-5M), at 1024 px as published. All but the last two are the file that is
shipped, image in, mask out. Networks take turns, so that a busy machine slows all alike: read the ratios.

``OUT``: finished runs. Their student, teacher and U-Nets, float and int8, take the place of those with random weights,
each with its Dice on all test images of the run; what cannot be shipped, such as an ensemble, answers in PyTorch. Where
``openvino`` is installed (it is no part of tskd), it answers beside onnxruntime, and it is told in how many pixels of
test images (of noise, without a run) the two differ.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from measure import dice_on_test, print_results
from PIL import Image
from torch import nn

from tskd.artifacts import ARTIFACTS, find_by_digest, whole
from tskd.data.prepared import Prepared, spaced
from tskd.deploy.network_file import CLASSES, INPUT, ask, open_session
from tskd.deploy.onnx_export import Deployable, Deployed, silenced, write_onnx
from tskd.machine.memory import cores
from tskd.models.control import nnunet_channels
from tskd.models.description import NetworkDescription
from tskd.models.registry import build_model, load_model
from tskd.run_file import REMEDY, read_run
from tskd.stages.int8 import WAYS, write_dynamic, write_static
from tskd.stages.network_answers import network_answer

SIDE = 128
"""What the students and U-Nets see; the image has one of ``--sides``."""
NETWORKS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "student: U-Net over Lite0": ("timm", {"backbone": "tf_efficientnet_lite0", "decoder": "unet"}),
    "student: ViT-Tiny": ("timm", {"backbone": "vit_tiny_patch16_224", "decoder": "detail", "patch": 8}),
    "U-Net of nnU-Net's size": ("dynunet", {"channels": list(nnunet_channels(SIDE))}),
}
FIRST = next(iter(NETWORKS))
SMALL_VIT = ("timm", {"backbone": "test_vit", "decoder": "detail"})
"""In ViT-Tiny's place with ``--quick``: what is written and made int8 in the same ways."""
MEMBERS, LOOKS = 3, 2
"""Networks of the teacher's ensemble, and how often each is asked: as it is and mirrored."""
SAM_SIDE = 1024
TRAINED = ("student", "teacher", "control", "unet", "unet_imagenet")
"""Models of a run that are asked, where it has them."""
SEEN_BY_TWO = 20
"""Images on which the masks of two runtimes are compared."""


class Rival(NamedTuple):
    """Something that answers an image (H, W, 3) uint8, by default with classes (H, W)."""

    answer: Callable[[np.ndarray], Any]
    megabytes: float
    path: Path | None = None
    """Of the ONNX file, where it is onnxruntime that answers."""
    data: Prepared | None = None
    """Whose test images it is scored on."""
    other: Callable[[np.ndarray], Any] | None = None
    """Another runtime with the same file, whose masks are compared."""


def main() -> None:
    """Print one row a network and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="finished runs whose networks are asked")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=int, nargs="+", help="images of folders that the first run's bundle predicts")
    parser.add_argument("--without-sam", action="store_true", help="leave out the encoders that take seconds")
    parser.add_argument("--quick", action="store_true", help="without SAM, a smaller ViT, three rounds: does it run?")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.sides, options.rounds = [64], 3
    with TemporaryDirectory() as folder:
        if options.folder:
            rows = [
                folder_row(options.runs[0], Path(folder), count, threads)
                for count in options.folder
                for threads in (1, cores())
            ]
            print_results(rows, as_json=options.json, threads=options.threads)
            return
        rivals = {
            name: rival for one in rivals_in(Path(folder), options) for name, rival in with_openvino(*one, options)
        }
        judged = {name: judgement(rival, max(options.sides)) for name, rival in rivals.items()}
        rows = [row for side in options.sides for row in rows_at(side, rivals, judged, options)]
    print_results(rows, as_json=options.json, threads=options.threads)


def rivals_in(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, Rival]]:
    """Yield every network by name, ready to be asked."""
    for run in options.runs:
        yield from trained_in(run, folder, options.threads)
    networks = {**NETWORKS, "student: ViT-Tiny": SMALL_VIT} if options.quick else NETWORKS
    for name, (kind, arguments) in networks.items() if not options.runs else ():
        torch.manual_seed(0)
        network = build_model(NetworkDescription(kind, arguments, ("any",), SIDE)).eval()
        path = folder / f"{len(list(folder.iterdir()))}.onnx"
        write_onnx(Deployed(network), path)
        yield name, _of_file(path, options.threads)
        if name.startswith("student"):
            yield f"{name}, int8", _of_file(_as_int8(path, name), options.threads)
        if name == FIRST:
            yield f"teacher: {MEMBERS} of them, mirrored too", _ensemble(path, options.threads)
    if not (options.quick or options.without_sam):
        yield "SAM ViT-B, encoder", _encoder("samvit_base_patch16")
        yield "MobileSAM, encoder (TinyViT-5M)", _encoder("tiny_vit_5m_224")


def trained_in(run: Path, folder: Path, threads: int) -> Iterator[tuple[str, Rival]]:
    """Yield the networks of a finished run, those that can be shipped in float and by both ways of int8.

    Raises UserError where the run is damaged.
    """
    artifacts, models = run.resolve() / ARTIFACTS, read_run(run).artifacts
    student = whole(artifacts / models["student"], REMEDY)
    found = find_by_digest(artifacts, "prepare", student.manifest["inputs"]["data"])
    assert found is not None, "the data of a finished run are beside its student"
    data = Prepared(whole(found.path, REMEDY).path)
    for model in TRAINED:
        if model in models:
            network = load_model(whole(artifacts / models[model], REMEDY).path)
            if not isinstance(network, Deployable):
                yield f"{run.name}: {model}, in PyTorch", _of_network(network, data)
                continue
            path = folder / f"{run.name}-{model}.onnx"
            write_onnx(Deployed(network), path)
            yield f"{run.name}: {model}", _of_file(path, threads, data)
            for way, write in WAYS.items():
                made = path.with_suffix(f".{way}.onnx")
                with silenced():
                    write(path, made, data)
                yield f"{run.name}: {model}, int8 {way}", _of_file(made, threads, data)


def with_openvino(name: str, rival: Rival, options: argparse.Namespace) -> Iterator[tuple[str, Rival]]:
    """Yield a network, and once more in OpenVINO where that is installed and the network is a file."""
    yield name, rival
    if rival.path is not None and find_spec("openvino"):
        answer = _in_openvino(rival.path, options.threads)
        yield f"{name}, OpenVINO", rival._replace(answer=answer, path=None, other=rival.answer)


def _in_openvino(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return what asks OpenVINO on the CPU, in float32 as onnxruntime computes: by default it may take bf16."""
    import openvino

    core = openvino.Core()
    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(path), "CPU", hints).create_infer_request()
    return lambda image: np.array(request.infer({INPUT: image})[CLASSES])


def _of_file(path: Path, threads: int, data: Prepared | None = None) -> Rival:
    session = open_session(path, threads)
    return Rival(lambda image: ask(session, image).classes, path.stat().st_size / 1e6, path, data)


def _of_network(network: nn.Module, data: Prepared) -> Rival:
    size = sum(one.numel() for one in network.parameters()) * 4 / 1e6
    return Rival(lambda image: network_answer(network, image).classes, size, data=data)


def _as_int8(path: Path, name: str) -> Path:
    made = path.with_suffix(".int8.onnx")
    with silenced():
        if "ViT" in name:
            write_dynamic(path, made)
        else:
            write_static(path, made, _Noise())  # type: ignore[arg-type]
    return made


class _Noise:
    """As many images as a calibration wants: ranges change what int8 answers, not what it costs."""

    images = np.random.default_rng(0).integers(0, 256, (8, SIDE, SIDE, 3), np.uint8)

    def rows(self, *parts: str) -> np.ndarray:
        return np.arange(len(self.images))


def _ensemble(path: Path, threads: int) -> Rival:
    session = open_session(path, threads)

    def answer(image: np.ndarray) -> Any:
        views = (image, np.ascontiguousarray(image[:, ::-1]))
        return [ask(session, view) for _ in range(MEMBERS) for view in views[:LOOKS]]

    return Rival(answer, MEMBERS * path.stat().st_size / 1e6)


def _encoder(name: str) -> Rival:
    """Return a timm encoder in PyTorch, asked at the size that SAM takes."""
    network: nn.Module = timm.create_model(name, num_classes=0).eval()
    image = torch.rand(1, 3, SAM_SIDE, SAM_SIDE)

    @torch.inference_mode()
    def answer(_: np.ndarray) -> Any:
        return network.forward_features(image)  # type: ignore[operator]

    return Rival(answer, sum(one.numel() for one in network.parameters()) * 4 / 1e6)


def noise(side: int) -> np.ndarray:
    """Return a square image (side, side, 3)."""
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)


def rows_at(
    side: int, rivals: Mapping[str, Rival], judged: Mapping[str, Mapping[str, str]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return one line a network for images of a side in px.

    With one thread the processor's time is told, which is the time on a machine that does nothing else.
    """
    clock = time.process_time if options.threads == 1 else time.perf_counter
    image = noise(side)
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(options.rounds + 1):
        for name, rival in rivals.items():
            if "encoder" in name and turn > 3:
                continue  # seconds each: three are enough
            began = clock()
            rival.answer(image)
            seconds[name].append(clock() - began)
    first = next(iter(rivals))
    median = {name: 1000 * float(np.median(times[1:])) for name, times in seconds.items()}
    return [
        {
            "network": name,
            "image px": side,
            "ms": round(median[name], 1),
            f"times as long as {first}": round(median[name] / median[first], 2),
            "MB": round(rival.megabytes, 1),
            **judged[name],
        }
        for name, rival in rivals.items()
    ]


def judgement(rival: Rival, side: int) -> dict[str, str]:
    """Return what is measured once a network: the memory for an image of that side, and what its masks are worth."""
    return {
        "peak MB": "-" if rival.path is None else str(round(in_own_process(ASKED_ONCE, rival.path, side))),
        "Dice": "-" if rival.data is None else f"{dice_on_test(rival.data, rival.answer):.4f}",
        "pixels unlike": "-" if rival.other is None else f"{unlike(rival, rival.other, noise(side)):.3%}",
    }


def unlike(rival: Rival, other: Callable[[np.ndarray], Any], drawn: np.ndarray) -> float:
    """Return the share of pixels in which two runtimes differ, over test images; over ``drawn`` without a run."""
    data = rival.data
    images = (
        [drawn] if data is None else [data.native_image(int(row)) for row in spaced(data.rows("test"), SEEN_BY_TWO)]
    )
    return float(np.mean([(rival.answer(image) != other(image)).mean() for image in images]))


def folder_row(run: Path, place: Path, count: int, threads: int) -> dict[str, Any]:
    """Return how fast a folder is predicted by a process of its own, start included, and the most memory it takes."""
    images, out = place / f"images{count}", place / f"out{count}-{threads}"
    if not images.is_dir():
        images.mkdir()
        for number in range(count):
            drawn = np.random.default_rng(number % 20).integers(0, 256, (64, 64, 3), np.uint8)
            Image.fromarray(drawn).resize((512, 512)).save(images / f"{number:05d}.jpg", quality=90)
    began = time.perf_counter()
    peak = in_own_process(PREDICTED, run, images, out, threads)
    seconds = time.perf_counter() - began
    return {"images": count, "threads": threads, "images/s": round(count / seconds, 1), "peak MB": round(peak)}


_PEAK = "print(int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024)"
ASKED_ONCE = f"""
import sys
from pathlib import Path
import numpy as np
from tskd.deploy.network_file import ask, open_session
ask(open_session(Path(sys.argv[1]), 1), np.zeros((int(sys.argv[2]), int(sys.argv[2]), 3), np.uint8))
{_PEAK}
"""
PREDICTED = f"""
import sys
from pathlib import Path
from tskd.deploy.bundle import open_bundle
from tskd.deploy.predict import PredictOptions, predict_paths
run, images, out, threads = sys.argv[1:]
predict_paths(open_bundle(Path(run)), [Path(images)], Path(out), options=PredictOptions(threads=int(threads)))
{_PEAK}
"""


def in_own_process(code: str, *arguments: object) -> float:
    """Return the number that a program prints (Linux: its peak memory in MB)."""
    asked = [sys.executable, "-c", code, *map(str, arguments)]
    return float(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
