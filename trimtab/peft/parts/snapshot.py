"""What a model looked like before something was attached to it, and the way back."""

from __future__ import annotations

from typing import Any

from torch import nn


class Snapshot:
    """Remembers a model's modules, modes, hooks, trainable flags and own attributes; `restore` puts them back.

    Modules that were replaced or wrapped come back as the same objects. Weights are not copied: what changes them
    in place must undo that itself.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._attributes = set(vars(model))
        self._modules = [(m, dict(m._modules), dict(m._parameters), m.training) for m in model.modules()]
        self._hooks = [(hooks, set(hooks)) for m in model.modules() for hooks in _hooks_of(m)]
        self._trainable = [(p, p.requires_grad, p.grad) for p in model.parameters()]

    def restore_modes(self) -> None:
        """Put every module of before into its mode of before; modules added since follow the model's."""
        for module in self._model.modules():
            module.training = self._model.training
        for module, _, _, training in self._modules:
            module.training = training

    def restore(self) -> None:
        """Leave the model as it was."""
        for module, children, parameters, training in self._modules:
            module._modules.clear()
            module._modules.update(children)
            module._parameters.clear()
            module._parameters.update(parameters)
            module.training = training
        for hooks, before in self._hooks:
            for added in set(hooks) - before:
                del hooks[added]
        for parameter, requires_grad, grad in self._trainable:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for name in set(vars(self._model)) - self._attributes:
            delattr(self._model, name)


def _hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    return [value for name, value in vars(module).items() if "_hooks" in name and isinstance(value, dict)]
