"""Compute in floating-point operations, counted by torch, so that budgets are equal on every machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

FEW_PIXELS, FEW_PARAMETERS = 256**2, 100_000_000
"""Beyond either, shapes are run instead of numbers, which took SAM ViT-B at 512 px 3.4 GB and a minute. Below, numbers
are several times faster."""


def count_flops(work: Callable[[], object]) -> int:
    """Return the operations of the matrix products and convolutions in ``work``; 2 a multiply-add."""
    with FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    ) as counter:
        work()
    return counter.get_total_flops()


def _convolution_backward(
    gradient: Sequence[int], inputs: Sequence[int], weights: Sequence[int], *others: Any, **_: Any
) -> int:
    """Return the operations of a convolution's backward pass from shapes: for each gradient as many as forward.

    torch's own formula takes every convolution for a dense one: a depthwise one over 64 channels counted 64 times.
    """
    transposed, (of_inputs, of_weights, _bias) = others[4], others[7]
    forward = conv_flop_count(list(inputs), list(weights), list(gradient), transposed=transposed)
    return forward * (of_inputs + of_weights)


def training_flops(
    model: nn.Module, image_size: int, scalar: Callable[[nn.Module, Tensor], Tensor] | None = None
) -> int:
    """Return the operations of one forward and backward pass for one image of that size.

    ``scalar`` maps the model and images (B, 3, H, W) to what is differentiated; None: of a segmenter's logits. The
    model itself stays as it is: a copy is run, since batch norm statistics move even where no weight does.
    """
    with _bounded(model, image_size) as copied:
        images = torch.zeros(2, 3, image_size, image_size)
        return count_flops(lambda: (scalar or _of_logits)(copied.train(), images).backward()) // 2


def inference_flops(model: nn.Module, image_size: int) -> int:
    """Return the operations of one forward pass for one image of that size."""
    with _bounded(model, image_size) as copied, torch.no_grad():
        images = torch.zeros(1, 3, image_size, image_size)
        return count_flops(lambda: copied(images))


@contextmanager
def _bounded(model: nn.Module, image_size: int) -> Iterator[nn.Module]:
    """Give a copy on the CPU; within the block tensors are shapes alone where numbers would take much memory.

    Fake tensors, not the meta device: they choose the operations that a CPU does (attention is another on the meta
    device), so that both ways count the same.
    """
    if image_size**2 <= FEW_PIXELS and sum(p.numel() for p in model.parameters()) <= FEW_PARAMETERS:
        yield copy.deepcopy(model).cpu()
        return
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # constants that a network holds beside its tensors stay real
    with fake:
        shapes: dict[int, Tensor] = {
            id(one): nn.Parameter(torch.empty_like(one, device="cpu"), one.requires_grad) for one in model.parameters()
        }
        shapes |= {id(one): torch.empty_like(one, device="cpu") for one in model.buffers()}
    copied = copy.deepcopy(model, shapes)
    with fake:
        yield copied


def gflops(operations: float) -> float:
    """Return operations in thousand millions, as manifests and tables hold them."""
    return round(operations / 1e9, 3)


def _of_logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images).logits
    return logits.square().mean()
