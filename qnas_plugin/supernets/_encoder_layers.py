"""Elastic layers of encoders: a subnet uses their first inputs and outputs."""

from __future__ import annotations

import torch
from torch import nn


class ElasticLinear(nn.Linear):
    """A linear layer of which the first ``width`` inputs and outputs are used; shares the weights it was made from."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.width = (linear.in_features, linear.out_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        inputs, outputs = self.width
        bias = None if self.bias is None else self.bias[:outputs]
        return nn.functional.linear(input, self.weight[:outputs, :inputs], bias)


class ElasticLayerNorm(nn.LayerNorm):
    """A LayerNorm over the first ``width`` numbers of what could be more; shares the weights it was made from."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__(norm.normalized_shape, norm.eps, device="meta")
        self.weight = norm.weight
        self.bias = norm.bias
        self.width = (len(norm.weight), len(norm.weight))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        _, kept = self.width
        return nn.functional.layer_norm(input, (kept,), self.weight[:kept], self.bias[:kept], self.eps)
