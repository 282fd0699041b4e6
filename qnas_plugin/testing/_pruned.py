"""A subnet cut out in the plain way, against which slices are checked."""

from __future__ import annotations

import copy

import torch

from qnas_plugin.space import Candidate
from qnas_plugin.supernets import Supernet
from qnas_plugin.supernets._cnn_layers import ElasticConv, ElasticNorm


def cut_to_size(supernet: Supernet, candidate: Candidate) -> torch.nn.Module:
    """The subnet as a model of its own: each elastic layer of this package becomes one of torch with its weights."""
    supernet.activate(candidate)
    model = copy.deepcopy(supernet.model)
    supernet.activate(None)
    for name, module in list(model.named_modules()):
        plain = _plain(module)
        if plain is not None:
            model.set_submodule(name, plain)
    return model.eval()


def _plain(module: torch.nn.Module) -> torch.nn.Module | None:
    """The layer of torch; None where nothing is elastic."""
    if isinstance(module, ElasticConv):
        inputs, outputs = module.width
        groups = outputs if module.groups > 1 else 1
        bias, padding = module.bias is not None, module.kernel // 2
        stride = (module.stride[0], module.stride[1])
        conv = torch.nn.Conv2d(inputs, outputs, module.kernel, stride, padding, groups=groups, bias=bias)
        conv.weight.data = module.weight_of(module.kernel).data[:outputs, :inputs].clone()
        return _with_bias(conv, module.bias, outputs)
    if isinstance(module, ElasticNorm):
        norm = torch.nn.BatchNorm2d(module.width)
        state = module.state_dict().items()
        norm.load_state_dict({key: value[: module.width] if value.ndim else value for key, value in state})
        return norm
    width = getattr(module, "width", None)
    if width is None:
        return None
    if isinstance(module, torch.nn.Linear):
        inputs, outputs = width
        linear = torch.nn.Linear(inputs, outputs, bias=module.bias is not None)
        linear.weight.data = module.weight.data[:outputs, :inputs].clone()
        return _with_bias(linear, module.bias, outputs)
    if isinstance(module, torch.nn.LayerNorm):
        layer_norm = torch.nn.LayerNorm(width[1], module.eps)
        layer_norm.load_state_dict({key: value[: width[1]] for key, value in module.state_dict().items()})
        return layer_norm
    return None


def _with_bias(layer: torch.nn.Linear | torch.nn.Conv2d, bias: torch.Tensor | None, outputs: int) -> torch.nn.Module:
    if bias is not None and layer.bias is not None:
        layer.bias.data = bias.data[:outputs].clone()
    return layer
