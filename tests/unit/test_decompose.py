"""Bias and variance from saved networks, image by image, against the formula on all at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.test_plan import recipe
from tskd.artifacts import Artifact, Store
from tskd.comparison.decompose import decompose
from tskd.data.prepared import Prepared
from tskd.engine import open_runtime
from tskd.experiment.run import Run
from tskd.models.description import NetworkDescription
from tskd.models.registry import build_model, load_model, save_model
from tskd.recipe.schema import EvaluateConfig
from tskd.stages.network_answers import network_answer
from tskd.stages.network_costs import measure_networks

DESCRIPTION = NetworkDescription("dynunet", {"channels": [4, 8, 16]}, ("lesion",), 32)


def save(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    folder.mkdir()
    save_model(folder, build_model(DESCRIPTION), DESCRIPTION, file="student.safetensors")
    return folder


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return Run(recipe(), tmp_path, open_runtime(recipe().engine)).prepared


def test_three_networks_against_the_formula(tmp_path: Path, prepared: Prepared) -> None:
    folders = [save(tmp_path / f"model{seed}", seed) for seed in range(3)]
    found = decompose(folders, prepared, EvaluateConfig(), device=torch.device("cpu"), label="test")
    networks = [load_model(folder) for folder in folders]
    errors, variances = [], []
    for row in prepared.rows("test"):
        image, mask = prepared.native_image(row), prepared.native_mask(row)
        p = np.stack([network_answer(network, image).probabilities for network in networks]).astype(np.float64)
        y = np.stack([mask == label for label in range(2)])
        errors.append(((p - y) ** 2).sum(axis=1).mean())
        variances.append(p.var(axis=0, ddof=1).sum(axis=0).mean())
    assert found.error == pytest.approx(np.mean(errors))
    assert found.variance == pytest.approx(np.mean(variances))
    assert found.bias2 == pytest.approx(np.mean(errors) - np.mean(variances))
    assert found.runs == 3
    assert found.variance > 0


def test_an_architecture_is_measured_once(tmp_path: Path) -> None:
    models, threads = [Artifact(save(tmp_path / f"model{seed}", seed)) for seed in range(2)], torch.get_num_threads()
    store = Store(tmp_path / "artifacts")
    found = measure_networks(store, models, image_size=32)
    assert found["model0"] == found["model1"]
    assert len(store.used) == 1
    network = found["model0"]
    assert network.parameters == sum(one.numel() for one in build_model(DESCRIPTION).parameters())
    assert network.model_mb == pytest.approx(4 * network.parameters / 1e6, abs=0.01)
    assert 0 < network.latency_ms < 10_000
    assert torch.get_num_threads() == threads, "one thread is for the measurement alone"
