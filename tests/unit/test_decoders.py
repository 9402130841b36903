from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tskd.errors import UserError
from tskd.models.decoders import DECODERS, DetailDecoder, PlainDecoder, build_decoder

DIMS = (8, 16, 24)
PYRAMID, ONE_SCALE = (4, 8, 16), (16, 16, 16)
"""Strides of the features below."""


def pyramid(image: int = 32, dims: tuple[int, ...] = DIMS) -> list[Tensor]:
    """Features of an encoder of several scales, strides 4, 8, 16."""
    return [torch.randn(2, dim, image // 4 // 2**level, image // 4 // 2**level) for level, dim in enumerate(dims)]


def one_scale(image: int = 32) -> list[Tensor]:
    """Features of a plain transformer with patches of 16."""
    return [torch.randn(2, dim, image // 16, image // 16) for dim in DIMS]


@pytest.mark.parametrize(
    ("name", "side"), [("plain", 16), ("detail", 32), ("pyramid", 16), ("unet", 64), ("unet_fine", 64)]
)
def test_the_size_of_the_logits(name: str, side: int) -> None:
    """plain: 4 times the deepest grid; detail: half the image; pyramid: the finest features; U-Nets: the image."""
    scaled = name in ("pyramid", "unet", "unet_fine")
    features = pyramid(64) if scaled else one_scale(64)
    decoder = build_decoder(name, DIMS, strides=PYRAMID if scaled else ONE_SCALE, classes=5)
    logits = decoder(torch.rand(2, 3, 64, 64), features)
    assert logits.shape == (2, 5, side, side)


@pytest.mark.parametrize("patch", [2, 3, 4, 6, 7, 8, 16, 32])
def test_detail_doubles_every_grid_up_to_half_the_image(patch: int) -> None:
    """Whatever the patch, no step enlarges more than twice, and the logits come at stride 2."""
    size = 16 * patch
    decoder = DetailDecoder((8,), strides=(patch,), classes=1)
    sides = [16]
    for up in decoder.ups:
        up.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    logits = decoder(torch.rand(1, 3, size, size), [torch.randn(1, 8, 16, 16)])
    half = -(-size // 2)
    assert logits.shape[-2:] == (half, half)
    assert all(below < above <= 2 * below for below, above in pairwise(sides))
    assert sides[-1] == half or len(sides) == 1


@pytest.mark.parametrize("name", sorted(DECODERS))
@pytest.mark.parametrize(
    ("features", "strides"), [(pyramid(), PYRAMID), (one_scale(), ONE_SCALE)], ids=["pyramid", "one scale"]
)
def test_every_decoder_takes_every_kind_of_encoder_but_unet_one_scale(
    name: str, features: list[Tensor], strides: tuple[int, ...]
) -> None:
    if name in ("unet", "unet_fine") and strides == ONE_SCALE:
        with pytest.raises(
            UserError, match=r"decoder of a U-Net joins features of several sizes.* Choose the decoder detail"
        ):
            build_decoder(name, DIMS, strides=strides, classes=2)
        return
    logits = build_decoder(name, DIMS, strides=strides, classes=2)(torch.rand(2, 3, 32, 32), features)
    assert logits.shape[:2] == (2, 2)
    assert logits.isfinite().all()


def test_plain_looks_at_the_embedding_alone() -> None:
    decoder = PlainDecoder(DIMS, strides=ONE_SCALE, classes=1)
    features = one_scale()
    others = [torch.zeros_like(plane) for plane in features[:-1]]
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(decoder(images, features), decoder(0 * images, [*others, features[-1]]))


def test_detail_sees_a_line_one_pixel_wide() -> None:
    """The encoder's grid of 2 x 2 cannot show it; the skip's answer differs exactly along the line."""
    torch.manual_seed(0)
    decoder = DetailDecoder(DIMS, strides=ONE_SCALE, classes=1).eval()
    features = [0 * plane for plane in one_scale(64)]
    images = torch.zeros(2, 3, 64, 64)
    images[1, :, :, 40] = 1
    with torch.no_grad():
        logits = decoder(images, features)
    difference = (logits[1] - logits[0]).abs().mean(dim=(0, 1))
    assert int(difference.argmax()) in (19, 20, 21)
    assert difference[18:23].mean() > 3 * difference[:8].mean()


def test_in_training_half_of_the_images_are_decoded_from_their_features_alone() -> None:
    torch.manual_seed(0)
    decoder = DetailDecoder(DIMS, strides=ONE_SCALE, classes=1)
    features = [plane[:1].expand(40, -1, -1, -1) for plane in one_scale(64)]
    images = torch.rand(40, 3, 64, 64)
    with torch.no_grad():
        trained = decoder.train()(images, features)
        decoder.drop.drop_prob = 1.0
        dropped = decoder(images, features)
        used = decoder.eval()(images, features)
    alone = torch.isclose(trained, dropped).flatten(1).all(dim=1)
    whole = torch.isclose(trained, used).flatten(1).all(dim=1)
    assert (alone ^ whole).all(), "each image has its skip or has none"
    assert 10 <= int(alone.sum()) <= 30
    with torch.no_grad():
        assert torch.equal(decoder(images, features, skip=False), dropped), "switched off is as it was dropped"
    assert not torch.isclose(used, dropped).flatten(1).all(dim=1).any(), "in the test no skip is dropped"


def test_details_skip_sees_7_pixels_a_side_and_no_more() -> None:
    """What finds an organ has to come from the encoder; norms, which know the image's mean contrast, aside."""
    torch.manual_seed(0)
    decoder = DetailDecoder(DIMS, strides=ONE_SCALE, classes=1).eval()
    for block in (decoder.skip, decoder.join):
        block[1] = nn.Identity()
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    decoder(images, [0 * plane[:1] for plane in one_scale(64)])[0, 0, 16, 16].backward()
    assert images.grad is not None
    seen = images.grad[0].abs().sum(dim=0).nonzero()
    assert (seen.min(dim=0).values.tolist(), seen.max(dim=0).values.tolist()) == ([29, 29], [35, 35])


@pytest.mark.parametrize("level", range(3))
def test_detail_pyramid_and_unet_use_every_level(level: int) -> None:
    for name in ("detail", "pyramid", "unet", "unet_fine"):
        features = [plane.requires_grad_() for plane in pyramid()]
        build_decoder(name, DIMS, strides=PYRAMID, classes=1)(
            torch.rand(2, 3, 32, 32), features
        ).square().mean().backward()
        gradient = features[level].grad
        assert gradient is not None
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(("strides", "sides"), [
    ((1, 2, 4), [20, 40]), ((2, 4, 8), [10, 20, 40]), ((4, 8, 16), [5, 10, 20, 40]), ((8, 16), [5, 10, 20, 40]),
    ((4, 16), [10, 20, 40]), ((6, 12), [7, 14, 27, 40]),
])  # fmt: skip
def test_unet_goes_up_by_the_skips_and_from_the_finest_doubles_to_the_image(
    strides: tuple[int, ...], sides: list[int]
) -> None:
    """Features at full size, at a half, a quarter; a scale that is missing, and one that is no power of 2."""
    size = 40
    decoder = build_decoder("unet", [4] * len(strides), strides=strides, classes=1)
    features = [torch.randn(2, 4, -(-size // stride), -(-size // stride)) for stride in strides]
    found: list[int] = []
    for block in decoder.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda module, inputs, output: found.append(output.shape[-1]))
    assert decoder(torch.rand(2, 3, size, size), features).shape == (2, 1, size, size)
    assert found == sides


@pytest.mark.parametrize("strides", [(2, 4, 8), (4, 8, 16), (6, 12)])
def test_unet_fine_is_unet_where_its_skip_is_switched_off(strides: tuple[int, ...]) -> None:
    """With the plain U-Net's weights, whatever the last block makes of the planes beside them."""
    size = 40
    features = [torch.randn(2, 4, -(-size // stride), -(-size // stride)) for stride in strides]
    plain, fine = (
        build_decoder(name, [4] * len(strides), strides=strides, classes=1).eval() for name in ("unet", "unet_fine")
    )
    ours = fine.state_dict()
    for name, weight in plain.state_dict().items():
        ours[name][:, : weight.shape[1]].copy_(weight) if weight.ndim > 1 else ours[name].copy_(weight)
    images = torch.rand(2, 3, size, size)
    wanted = plain(images, features)
    assert torch.allclose(fine(images, features, skip=False), wanted, atol=1e-6)
    assert not torch.allclose(fine(images, features), wanted, atol=1e-2)


def test_unet_fine_sees_a_line_one_pixel_wide() -> None:
    """Two convolutions at full size before the join and two behind it, and one of the head: 11 x 11 pixels."""
    torch.manual_seed(0)
    decoder = build_decoder("unet_fine", DIMS, strides=PYRAMID, classes=1).eval()
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    decoder(images, [0 * plane[:1] for plane in pyramid(64)])[0, 0, 32, 32].backward()
    assert images.grad is not None
    seen = images.grad[0].abs().sum(dim=0).nonzero()
    assert (seen.min(dim=0).values.tolist(), seen.max(dim=0).values.tolist()) == ([27, 27], [37, 37])


def test_unet_fine_is_refused_where_the_finest_features_are_full_size() -> None:
    with pytest.raises(UserError, match=r"as large as the image\. Choose unet"):
        build_decoder("unet_fine", DIMS, strides=(1, 2, 4), classes=1)


def test_an_unknown_name_is_refused_with_the_choices() -> None:
    with pytest.raises(
        UserError, match=r"decoder 'u-net' is not known. Choose one of: detail, plain, pyramid, unet, unet_fine"
    ):
        build_decoder("u-net", DIMS, strides=ONE_SCALE, classes=1)
