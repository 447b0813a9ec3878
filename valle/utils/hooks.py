"""Find where numbers stop being finite (``--inf-check``)."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)


class InfCheck:
    """Reports every module whose output or gradient is the first of its pass not to be finite.

    Only modules that are given finite numbers and return others are named: they are where it
    began. Each check waits for the device, so training is slower while it is on.

    Attributes:
        found: What was reported, in order.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self._handles: list[Any] = []

    def watch(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            label = name or type(module).__name__
            self._handles.append(
                module.register_forward_hook(self._forward_hook(label), with_kwargs=True)
            )
            self._handles.append(module.register_full_backward_hook(self._backward_hook(label)))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(self._parameter_hook(name)))

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _forward_hook(self, label: str) -> Any:
        def hook(_module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
            if _is_finite((inputs, named)) and not _is_finite(output):
                self._report(f"the output of {label} is not finite, its inputs are")

        return hook

    def _backward_hook(self, label: str) -> Any:
        def hook(_module: nn.Module, grad_input: Any, grad_output: Any) -> None:
            if _is_finite(grad_output) and not _is_finite(grad_input):
                self._report(f"the gradient leaving {label} is not finite, the one arriving is")

        return hook

    def _parameter_hook(self, name: str) -> Any:
        def hook(grad: Tensor) -> None:
            if not _is_finite(grad):
                self._report(f"the gradient of {name} is not finite")

        return hook

    def _report(self, message: str) -> None:
        self.found.append(message)
        _log.warning(message)


def register_inf_check_hooks(model: nn.Module) -> InfCheck:
    """Watch a model; the log names each module at which numbers stop being finite.

    Args:
        model: Without the wrapper of DDP, whose own hooks it would come between.

    Returns:
        The watch, with ``remove()``.
    """
    check = InfCheck()
    check.watch(model)
    return check


def _is_finite(values: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in _floats(values))


def _floats(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values.detach()
    elif isinstance(values, dict):
        yield from _floats(list(values.values()))
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _floats(value)
