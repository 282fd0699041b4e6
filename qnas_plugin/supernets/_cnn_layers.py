"""Elastic layers of convolutional networks: a subnet uses their first channels and the centres of their kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

Activation = Callable[[torch.Tensor], torch.Tensor]


class ElasticConv(nn.Conv2d):
    """A convolution of which the first ``width`` inputs and outputs are used, with one of several kernel sizes.

    A smaller kernel is the centre of the next larger one times a learned matrix (Cai et al. 2020, section 3.3), an
    identity at first. Padding is half the kernel.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernels: Kernel sizes, odd, ascending.
        stride: Of the convolution.
        depthwise: Whether each channel has its own filter; then there are as many inputs as outputs.
        bias: Whether there is one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernels: Sequence[int],
        stride: int = 1,
        *,
        depthwise: bool = False,
        bias: bool = False,
    ) -> None:
        groups = inputs if depthwise else 1
        super().__init__(inputs, outputs, kernels[-1], stride, kernels[-1] // 2, groups=groups, bias=bias)
        self.kernels = tuple(kernels)
        self.width = (inputs, outputs)
        self.kernel = kernels[-1]
        for smaller, larger in pairwise(kernels):
            self.register_parameter(f"{larger}to{smaller}_matrix", nn.Parameter(torch.eye(smaller**2)))

    def weight_of(self, kernel: int) -> torch.Tensor:
        """The weight ``(outputs, inputs or 1, kernel, kernel)`` of a kernel size, for all channels."""
        weight: torch.Tensor = self.weight
        for smaller, larger in reversed(list(pairwise(self.kernels))):
            if larger <= kernel:
                break
            edge = (larger - smaller) // 2
            centre = weight[:, :, edge:-edge, edge:-edge]
            matrix = self.get_parameter(f"{larger}to{smaller}_matrix")
            weight = (centre.flatten(2) @ matrix.T).view_as(centre)
        return weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        inputs, outputs = self.width
        weight = self.weight_of(self.kernel)[:outputs, :inputs]
        bias = None if self.bias is None else self.bias[:outputs]
        groups = outputs if self.groups > 1 else 1
        padding = self.kernel // 2
        if self.training and groups > 1 and min(input.shape[-2:]) < self.kernel:
            # torch 2.13 takes several times as long for the gradient of such a weight where it has to pad by itself
            input, padding = nn.functional.pad(input, [padding] * 4), 0
        return nn.functional.conv2d(input, weight, bias, self.stride, padding, groups=groups)


class ElasticNorm(nn.BatchNorm2d):
    """A BatchNorm of which the first ``width`` channels are used; subnets share its statistics until re-estimated."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.width = channels

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        kept = slice(self.width)
        mean, variance = self.running_mean[kept], self.running_var[kept]
        weight, bias = self.weight[kept], self.bias[kept]
        own = self.training and input[:, 0].numel() > 1  # a single value has no variance
        return nn.functional.batch_norm(input, mean, variance, weight, bias, own, self.momentum, self.eps)


class Unit(nn.Module):
    """A convolution, its BatchNorm and its activation.

    Args:
        conv: The convolution.
        activation: None leaves the values as they are.
        norm: Whether there is a BatchNorm.
    """

    def __init__(self, conv: ElasticConv, activation: Activation | None = None, *, norm: bool = True) -> None:
        super().__init__()
        self.conv = conv
        self.bn = ElasticNorm(conv.out_channels) if norm else None
        self.activation = activation

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.conv(input)
        if self.bn is not None:
            output = self.bn(output)
        return output if self.activation is None else self.activation(output)


def divisible(channels: float, by: int = 8) -> int:
    """The nearest multiple, but at least 90 % of the channels: the rule of MobileNets for their widths."""
    nearest = max(by, int(channels + by / 2) // by * by)
    return nearest if nearest >= 0.9 * channels else nearest + by


def start(model: nn.Module) -> None:
    """Random weights for training from scratch: He's normal distribution, fan out."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
