"""The masked autoencoder's parts against numpy and against timm's own forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tskd.errors import UserError
from tskd.losses.pretraining import hidden_patch_loss, normalise_patches
from tskd.models.description import NetworkDescription
from tskd.models.mae import MaskedAutoencoder, encode_visible, patchify, unpatchify, visible_count
from tskd.models.registry import build_model

SIZE, PATCH = 64, 16
TOKENS = (SIZE // PATCH) ** 2


def build_student(backbone: str = "vit_tiny_patch16_224") -> Any:
    torch.manual_seed(0)
    arguments = {"backbone": backbone, "decoder": "plain"}
    return build_model(NetworkDescription("timm", arguments, ("one",), SIZE))


def build_mae(mask: float = 0.75) -> MaskedAutoencoder:
    return MaskedAutoencoder(build_student(), mask=mask, width=96, depth=2)


@pytest.mark.parametrize(("width", "heads"), [(96, 3), (100, 2), (36, 1), (200, 5), (512, 16)])
def test_any_width_that_positions_allow_has_heads(width: int, heads: int) -> None:
    """About 32 channels a head, as many as divide the width: 100 is not three times anything."""
    mae = MaskedAutoencoder(build_student(), mask=0.75, width=width, depth=1)
    assert mae.blocks[0].attn.num_heads == heads


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_patches_are_cut_row_by_row_with_colours_last() -> None:
    planes = random(2, 3, SIZE, SIZE)
    patches = patchify(planes, PATCH)
    assert patches.shape == (2, TOKENS, PATCH * PATCH * 3)
    array = planes.permute(0, 2, 3, 1).numpy()
    for number in range(TOKENS):
        top, left = PATCH * (number // (SIZE // PATCH)), PATCH * (number % (SIZE // PATCH))
        expected = array[:, top : top + PATCH, left : left + PATCH].reshape(2, -1)
        assert np.array_equal(patches[:, number].numpy(), expected)


def test_putting_patches_together_undoes_cutting() -> None:
    planes = random(2, 3, SIZE, SIZE)
    assert torch.equal(unpatchify(patchify(planes, PATCH), PATCH), planes)


@pytest.mark.parametrize(("mask", "seen"), [(0.75, 4), (0.5, 8), (0.8, 3), (0.99, 1)])
def test_exactly_the_share_is_hidden_of_every_image(mask: float, seen: int) -> None:
    assert visible_count(TOKENS, mask) == seen
    output = build_mae(mask)(random(3, 3, SIZE, SIZE), random(3, TOKENS))
    assert output.hidden.sum(dim=1).tolist() == [TOKENS - seen] * 3
    assert not torch.equal(output.hidden[0], output.hidden[1]), "each image has a mask of its own"


def test_patches_with_the_largest_numbers_are_hidden() -> None:
    noise = random(3, TOKENS)
    hidden = build_mae()(random(3, 3, SIZE, SIZE), noise).hidden
    assert torch.equal(hidden, noise.argsort(dim=1).argsort(dim=1) >= TOKENS // 4)


def test_the_target_is_each_patch_normalised_as_numpy_does_it() -> None:
    patches = random(2, TOKENS, 48)
    array = patches.numpy().astype(np.float64)
    mean, variance = array.mean(axis=-1, keepdims=True), array.var(axis=-1, ddof=1, keepdims=True)
    np.testing.assert_allclose(
        normalise_patches(patches), (array - mean) / np.sqrt(variance + 1e-6), rtol=1e-4, atol=1e-5
    )


def test_a_patch_of_one_value_is_a_target_of_zeros() -> None:
    assert torch.equal(normalise_patches(torch.full((1, 2, 48), 0.3)), torch.zeros(1, 2, 48))


def test_the_loss_is_the_error_of_hidden_patches_alone() -> None:
    predicted, target = random(2, 5, 12, seed=2), random(2, 5, 12, seed=3)
    hidden = torch.tensor([[True, False, False, True, False], [False, True, True, False, False]])
    errors = ((predicted - target).numpy() ** 2).mean(axis=-1)
    expected = (errors[0, 0] + errors[0, 3] + errors[1, 1] + errors[1, 2]) / 4
    assert hidden_patch_loss(predicted, target, hidden).item() == pytest.approx(expected, rel=1e-6)
    changed = predicted + 100 * ~hidden[..., None]
    assert torch.equal(hidden_patch_loss(changed, target, hidden), hidden_patch_loss(predicted, target, hidden))


def test_with_all_patches_visible_the_encoder_is_timms_own() -> None:
    vit = build_student().encoder.model.eval()
    planes = random(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        assert torch.equal(
            encode_visible(vit, planes, torch.arange(TOKENS).expand(2, -1)), vit.forward_features(planes)
        )


def test_visible_patches_are_encoded_as_if_there_were_no_others() -> None:
    """What a hidden patch shows changes nothing, and the order in which patches are given does not matter."""
    vit = build_student().encoder.model.eval()
    planes, visible = random(1, 3, SIZE, SIZE), torch.tensor([[1, 6, 11]])
    patches = patchify(planes, PATCH)
    others = torch.ones(TOKENS, dtype=torch.bool).index_fill(0, visible[0], False)
    patches[:, others] = 0.5
    with torch.inference_mode():
        expected = encode_visible(vit, planes, visible)
        assert torch.equal(encode_visible(vit, unpatchify(patches, PATCH), visible), expected)
        turned = encode_visible(vit, planes, visible.flip(1))
        torch.testing.assert_close(turned[:, [0, 3, 2, 1]], expected, rtol=1e-4, atol=1e-5)


def test_tokens_come_back_to_their_places_in_the_decoder() -> None:
    """With a decoder that only adds positions and projects, a visible patch's answer depends on that patch's token."""
    mae = build_mae().eval()
    mae.blocks = torch.nn.Sequential()
    noise = random(1, TOKENS)
    images = random(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        order = noise.argsort(dim=1)
        encoded = encode_visible(mae.student.encoder.model, mae.student.normalise(images), order[:, :4])
        output = mae(images, noise)
        tokens = mae.embed(encoded)[:, 1:]
        expected = mae.head(tokens + mae.positions[:, 1 + order[0, :4]])
        torch.testing.assert_close(output.predicted[:, order[0, :4]], expected)
        blank = mae.head(mae.mask_token + mae.positions[:, 1 + order[0, 4:]])
        torch.testing.assert_close(output.predicted[:, order[0, 4:]], blank)


def test_what_is_trained_is_the_students_encoder_and_not_its_decoder() -> None:
    mae = build_mae().train()
    output = mae(random(2, 3, SIZE, SIZE), random(2, TOKENS))
    hidden_patch_loss(output.predicted, normalise_patches(output.patches), output.hidden).backward()
    assert [name for name, p in mae.student.encoder.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is None and not p.requires_grad for p in mae.student.decoder.parameters())


def test_a_perfect_prediction_completes_the_image() -> None:
    mae, images = build_mae(), random(2, 3, SIZE, SIZE)
    mae.forward = lambda planes, noise: answer  # type: ignore[method-assign]
    patches = patchify(mae.student.normalise(images), PATCH)
    hidden = random(2, TOKENS) > 0.3
    answer = (normalise_patches(patches), patches, hidden)
    visible, completed = mae.complete(images, random(2, TOKENS))
    torch.testing.assert_close(completed, images, rtol=1e-4, atol=1e-4)
    cut, black = patchify(visible, PATCH), patchify(visible, PATCH)[hidden]
    torch.testing.assert_close(cut[~hidden], patchify(images, PATCH)[~hidden], rtol=1e-4, atol=1e-4)
    assert not black.any()


def test_a_convolutional_student_is_refused() -> None:
    with pytest.raises(UserError, match="mae hides patches from a plain vision transformer"):
        MaskedAutoencoder(build_student("resnet10t"), mask=0.75, width=96, depth=2)
