"""Any network as a segmenter: foreground logits and, where it offers them, features, whoever wrote it."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tskd.errors import UserError
from tskd.types import SegmentationOutput

Background = Literal["auto", "channel", "implicit"]
"""Where the background is: the first channel of the logits (as in MONAI and smp), or a logit of zero beside them."""
CELLS = 8
"""Side of the map that stands for the features of a network that offers none; no loss looks at it."""
_ENCODER = "encoder"
"""The part whose output is taken as features where none is named: smp, timm and MONAI call it so."""


class AsSegmenter(nn.Module):
    """A network of anybody's, (B, 3, H, W) in [0, 1] in, as a :class:`tskd.types.SegmentationOutput` out.

    Its answer may be a tensor (B, C, H, W), a :class:`SegmentationOutput`, an object or dictionary with ``logits`` (or
    ``out``), or a sequence that begins with one of them. Logits of another size are resized to the images'. A network
    whose first convolution takes one channel sees the mean of the three.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        image_size: int,
        classes: int | None,
        background: Background,
        features: str | None,
        name: str = "network",
    ) -> None:
        """Ask the network once and find out what it gives.

        ``classes`` is the number of foreground classes, None where only its answer can say. ``features`` names the
        part whose output is the features: a module's name, ``auto`` or None; ``name`` is what messages call it. Raises
        UserError where the answer does not fit.
        """
        super().__init__()
        self.network, self.name = network, name
        self.channels = _input_channels(network)
        self._seen: list[Any] = []
        self.part = self._part_named(features)
        self._heard = self._listen()
        try:
            self._find_out(image_size, classes, background)
        except BaseException:
            self.stop_listening()
            raise

    def _find_out(self, image_size: int, classes: int | None, background: Background) -> None:
        answer, found = self._probe(image_size)
        self.own = isinstance(answer, SegmentationOutput)
        self.subtract = not self.own and self._has_background(_logits_of(answer).shape[1], classes, background)
        self.classes = _logits_of(answer).shape[1] - self.subtract
        self.offers_features = bool(found)
        self.feature_dims = tuple(one.shape[1] for one in found) or (self.classes,)

    def forward(self, images: Tensor) -> SegmentationOutput:
        """(B, 3, H, W) in [0, 1] to features and (B, K, H, W) foreground logits, the background a logit of zero."""
        answer = self._ask(images)
        if isinstance(answer, SegmentationOutput):
            return answer
        logits = _logits_of(answer)
        if self.subtract:  # the softmax is the same when one logit is taken from all
            logits = logits[:, 1:] - logits[:, :1]
        if logits.shape[-2:] != images.shape[-2:]:
            logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return SegmentationOutput(self._features() or (F.adaptive_avg_pool2d(logits, CELLS),), logits)

    def _ask(self, images: Tensor) -> Any:
        self._seen.clear()
        return self.network(images.mean(dim=1, keepdim=True) if self.channels == 1 else images)

    def _features(self) -> tuple[Tensor, ...]:
        """Return what the named part has said for the last images, shallow to deep, and forget it."""
        maps = tuple(one for one in _flat(self._seen) if one.ndim == 4 and min(one.shape[-2:]) > 1)
        self._seen.clear()
        return maps

    def _part_named(self, features: str | None) -> str | None:
        """Return the name of the part whose output is taken as features; UserError where the network has none such."""
        if features is None:
            return None
        parts = dict(self.network.named_modules())
        name = _ENCODER if features == "auto" else features
        if name in parts:
            return name
        if features == "auto":
            return None
        known = ", ".join(one for one in parts if one and "." not in one)
        raise UserError(f"features: the network has no part {features!r}. Name one of its modules: {known}, ...")

    def _listen(self) -> RemovableHandle | None:
        if self.part is None:
            return None
        part = self.network.get_submodule(self.part)
        return part.register_forward_hook(lambda module, given, answer: self._seen.append(answer))

    def stop_listening(self) -> None:
        """Leave the network as it was: it belongs to somebody who saves it and goes on with it. Features are no longer
        told, logits are."""
        if self._heard is not None:
            self._heard.remove()
            self._heard = None
        self._seen.clear()

    def _has_background(self, channels: int, classes: int | None, background: Background) -> bool:
        """Say whether the first channel is the background's; UserError where the channels do not fit the classes."""
        if background == "auto":
            explicit = channels > 1 if classes is None else channels == classes + 1
        else:
            explicit = background == "channel"
        if classes is not None and channels - explicit != classes:
            raise UserError(
                f"the {self.name} answers {channels} channels. With {classes} foreground class(es) these must be "
                f"{classes}, or {classes + 1} with the background first."
            )
        if channels - explicit < 1:
            raise UserError(f"the {self.name} answers one channel, and that cannot be the background alone.")
        return explicit

    def _probe(self, image_size: int) -> tuple[Any, tuple[Tensor, ...]]:
        """Return the answer for one black image, and the features that it came with."""
        device = next((one.device for one in self.network.parameters()), torch.device("cpu"))
        training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                answer = self._ask(torch.zeros(1, 3, image_size, image_size, device=device))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise UserError(
                f"the {self.name} does not take images (1, 3, {image_size}, {image_size}) in [0, 1]: {error}. "
                "Wrap it in a module that does, or choose another image_size."
            ) from error
        finally:
            self.network.train(training)
        logits = _logits_of(answer)
        if logits.ndim != 4:
            raise UserError(f"the {self.name} answers logits {tuple(logits.shape)}; (B, C, H, W) are needed: wrap it.")
        found = answer.features if isinstance(answer, SegmentationOutput) else self._features()
        return answer, tuple(found)


def _logits_of(answer: Any) -> Tensor:
    """Return the logits in what a network answered; MONAI's deep supervision holds them first."""
    if isinstance(answer, Tensor):
        return answer[:, 0] if answer.ndim == 5 else answer
    if isinstance(answer, dict):
        for name in ("logits", "out"):
            if name in answer:
                return _logits_of(answer[name])
    if hasattr(answer, "logits"):
        return _logits_of(answer.logits)
    if isinstance(answer, list | tuple) and answer:
        return _logits_of(answer[0])
    raise UserError(
        f"the network answers a {type(answer).__name__}. Needed: logits (B, C, H, W), a SegmentationOutput, or "
        "something with `logits`. Wrap it in a module that returns one of these."
    )


def _input_channels(network: nn.Module) -> int:
    convolutions = (one for one in network.modules() if isinstance(one, nn.Conv2d))
    return next((one.in_channels for one in convolutions), 3)


def _flat(values: Any) -> list[Tensor]:
    """Return the tensors in nested lists and tuples, in order."""
    if isinstance(values, Tensor):
        return [values]
    return [one for value in values for one in _flat(value)] if isinstance(values, list | tuple) else []
