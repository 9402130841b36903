"""Networks of other people as segmenters: what they answer is understood, or refused in words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from tskd.api.networks import AsSegmenter
from tskd.errors import UserError
from tskd.losses.classes import class_probabilities
from tskd.types import SegmentationOutput

SIZE = 32


class Answering(nn.Module):
    """A convolution whose answer is wrapped as some library does."""

    def __init__(self, channels: int, wrap: Any = lambda logits: logits, *, inputs: int = 3) -> None:
        super().__init__()
        self.layer = nn.Conv2d(inputs, channels, 3, padding=1)
        self.wrap = wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self.layer(images))


def adapted(network: nn.Module, *, classes: int | None = None, **options: Any) -> AsSegmenter:
    given = {"background": "auto", "features": "auto", **options}
    return AsSegmenter(network, image_size=SIZE, classes=classes, **given)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: logits,
        lambda logits: SimpleNamespace(logits=logits),
        lambda logits: {"out": logits},
        lambda logits: {"logits": logits},
        lambda logits: [logits, None],
        lambda logits: torch.stack([logits, 0 * logits], dim=1),
        lambda logits: nn.functional.avg_pool2d(logits, 4),
    ],
)
def test_every_kind_of_answer_gives_logits_at_the_images_size(wrap: Any) -> None:
    """Red where a library's answer is not understood, or small logits are not enlarged."""
    answer = adapted(Answering(2, wrap), classes=2)(torch.rand(2, 3, SIZE, SIZE))
    assert answer.logits.shape == (2, 2, SIZE, SIZE)
    assert answer.logits.std() > 0, "not the zeros of deep supervision's second head"


def test_a_background_channel_leaves_the_probabilities_as_they_are() -> None:
    """Red where the background is taken for a class, or subtracted the wrong way round."""
    torch.manual_seed(0)
    network, images = Answering(3), torch.rand(2, 3, SIZE, SIZE)
    found = class_probabilities(adapted(network, classes=2)(images).logits)
    torch.testing.assert_close(found, network(images).softmax(dim=1))


def test_one_channel_is_a_sigmoid() -> None:
    network, images = Answering(1), torch.rand(2, 3, SIZE, SIZE)
    found = class_probabilities(adapted(network)(images).logits)
    torch.testing.assert_close(found[:, 1:], network(images).sigmoid())


@pytest.mark.parametrize(
    ("channels", "classes", "background", "expected"),
    [(1, None, "auto", 1), (3, None, "auto", 2), (3, 3, "auto", 3), (3, 2, "auto", 2), (3, None, "implicit", 3)],
)
def test_the_number_of_classes_follows(channels: int, classes: int | None, background: str, expected: int) -> None:
    assert adapted(Answering(channels), classes=classes, background=background).classes == expected


def test_what_does_not_fit_is_refused_in_words() -> None:
    """Red where a user sees a traceback of torch instead."""
    with pytest.raises(UserError, match="answers 5 channels"):
        adapted(Answering(5), classes=2)
    with pytest.raises(UserError, match="does not take images"):
        adapted(Answering(1, inputs=4))
    with pytest.raises(UserError, match="answers a str"):
        adapted(Answering(1, lambda logits: "text"))
    with pytest.raises(UserError, match=r"no part 'stem'.*layer"):
        adapted(Answering(1), features="stem")
    with pytest.raises(UserError, match="cannot be the background alone"):
        adapted(Answering(1), background="channel")


def test_a_network_of_one_channel_sees_the_mean() -> None:
    network = Answering(1, inputs=1)
    images = torch.rand(1, 3, SIZE, SIZE)
    torch.testing.assert_close(adapted(network)(images).logits, network(images.mean(1, keepdim=True)))


def test_features_of_smp_come_with_the_answer_and_are_not_kept() -> None:
    """Red where features are those of the batch before, or grow with every call."""
    segmenter = adapted(smp.Unet("mobilenet_v2", encoder_weights=None, classes=1).eval())
    assert segmenter.offers_features
    first, second = torch.rand(2, 3, SIZE, SIZE), torch.rand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        segmenter(first)
        answer = segmenter(second)
        expected = [one for one in segmenter.network.encoder(second) if min(one.shape[-2:]) > 1]
    assert len(answer.features) == len(expected)
    torch.testing.assert_close(answer.features[-1], expected[-1])
    assert segmenter.feature_dims == tuple(one.shape[1] for one in expected)


def test_a_named_part_gives_the_features_and_monai_without_one_gives_none() -> None:
    network = DynUNet(2, 3, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[8, 8, 8], res_block=False)
    assert not adapted(network, classes=1).offers_features
    named = adapted(network, classes=1, features="bottleneck")
    assert named.offers_features
    assert named(torch.rand(1, 3, SIZE, SIZE)).features[-1].shape == (1, 8, SIZE // 4, SIZE // 4)


def test_our_own_answer_passes_through() -> None:
    own = Answering(2, lambda logits: SegmentationOutput((logits[:, :1],), logits))
    answer = adapted(own, classes=2)(torch.rand(1, 3, SIZE, SIZE))
    assert answer.features[0].shape == (1, 1, SIZE, SIZE)
