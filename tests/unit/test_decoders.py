from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tskd.errors import UserError
from tskd.models.decoders import DECODERS, DetailDecoder, PlainDecoder, build_decoder

DIMS = (8, 16, 24)


def pyramid(image: int = 32, dims: tuple[int, ...] = DIMS) -> list[Tensor]:
    """Features of an encoder of several scales, strides 4, 8, 16."""
    return [torch.randn(2, dim, image // 4 // 2**level, image // 4 // 2**level) for level, dim in enumerate(dims)]


def one_scale(image: int = 32) -> list[Tensor]:
    """Features of a plain transformer with patches of 16."""
    return [torch.randn(2, dim, image // 16, image // 16) for dim in DIMS]


@pytest.mark.parametrize(("name", "side"), [("plain", 16), ("detail", 32), ("pyramid", 16)])
def test_the_size_of_the_logits(name: str, side: int) -> None:
    """plain: 4 times the deepest grid; detail: half the image; pyramid: the finest features."""
    features = pyramid(64) if name == "pyramid" else one_scale(64)
    logits = build_decoder(name, DIMS, stride=16, classes=5)(torch.rand(2, 3, 64, 64), features)
    assert logits.shape == (2, 5, side, side)


@pytest.mark.parametrize("patch", [2, 3, 4, 6, 7, 8, 16, 32])
def test_detail_doubles_every_grid_up_to_half_the_image(patch: int) -> None:
    """Whatever the patch, no step enlarges more than twice, and the logits come at stride 2."""
    size = 16 * patch
    decoder = DetailDecoder((8,), stride=patch, classes=1)
    sides = [16]
    for up in decoder.ups:
        up.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    logits = decoder(torch.rand(1, 3, size, size), [torch.randn(1, 8, 16, 16)])
    half = -(-size // 2)
    assert logits.shape[-2:] == (half, half)
    assert all(below < above <= 2 * below for below, above in pairwise(sides))
    assert sides[-1] == half or len(sides) == 1


@pytest.mark.parametrize("name", sorted(DECODERS))
@pytest.mark.parametrize("features", [pyramid(), one_scale()], ids=["pyramid", "one scale"])
def test_every_decoder_takes_every_kind_of_encoder(name: str, features: list[Tensor]) -> None:
    logits = build_decoder(name, DIMS, stride=16, classes=2)(torch.rand(2, 3, 32, 32), features)
    assert logits.shape[:2] == (2, 2)
    assert logits.isfinite().all()


def test_plain_looks_at_the_embedding_alone() -> None:
    decoder = PlainDecoder(DIMS, stride=16, classes=1)
    features = one_scale()
    others = [torch.zeros_like(plane) for plane in features[:-1]]
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(decoder(images, features), decoder(0 * images, [*others, features[-1]]))


def test_detail_sees_a_line_one_pixel_wide() -> None:
    """The encoder's grid of 2 x 2 cannot show it; the skip's answer differs exactly along the line."""
    torch.manual_seed(0)
    decoder = DetailDecoder(DIMS, stride=16, classes=1).eval()
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
    decoder = DetailDecoder(DIMS, stride=16, classes=1)
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
    decoder = DetailDecoder(DIMS, stride=16, classes=1).eval()
    for block in (decoder.skip, decoder.join):
        block[1] = nn.Identity()
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    decoder(images, [0 * plane[:1] for plane in one_scale(64)])[0, 0, 16, 16].backward()
    assert images.grad is not None
    seen = images.grad[0].abs().sum(dim=0).nonzero()
    assert (seen.min(dim=0).values.tolist(), seen.max(dim=0).values.tolist()) == ([29, 29], [35, 35])


@pytest.mark.parametrize("level", range(3))
def test_detail_and_pyramid_use_every_level(level: int) -> None:
    for name in ("detail", "pyramid"):
        features = [plane.requires_grad_() for plane in pyramid()]
        build_decoder(name, DIMS, stride=16, classes=1)(torch.rand(2, 3, 32, 32), features).square().mean().backward()
        gradient = features[level].grad
        assert gradient is not None
        assert gradient.abs().max() > 0


def test_an_unknown_name_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match=r"decoder 'unet' is not known. Choose one of: detail, plain, pyramid"):
        build_decoder("unet", DIMS, stride=16, classes=1)
