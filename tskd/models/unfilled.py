"""Networks on the meta device, where tensors have shapes and no numbers, without the time that initialisers take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_FILLING = frozenset({
    nn.init.constant_, nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_, Tensor.add_, Tensor.clamp_,
    Tensor.erfinv_, Tensor.fill_, Tensor.mul_, Tensor.normal_, Tensor.uniform_, Tensor.zero_,
})  # fmt: skip
"""What initialisers of torch and timm are made of. Each changes numbers alone and answers the tensor it was given."""


class Unfilled(TorchFunctionMode):
    """Within it a tensor on the meta device is not filled: torch works that out in Python, four fifths of the time.

    To build a network in, not to run one: a shape that does not fit another would pass unseen.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        arguments: tuple[Any, ...] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call what is asked for, or answer the tensor as it is."""
        named = named or {}
        if function in _FILLING and (tensor := (*arguments, *named.values())[0]).is_meta:
            return tensor
        return function(*arguments, **named)
