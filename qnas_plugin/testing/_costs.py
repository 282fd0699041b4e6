"""Computed costs beside those of files that are written and of products that are counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qnas_plugin.build.graph import Graph
from qnas_plugin.build.slice import subnet
from qnas_plugin.data import Inputs
from qnas_plugin.measure.costs import Costs, macs
from qnas_plugin.quantizers.formats import format_of
from qnas_plugin.quantizers.without_data import uncalibrated
from qnas_plugin.space import Genes
from qnas_plugin.supernets import Network

WITHIN = 0.005
"""What sizes may be off by, relative; the files of tiny networks have 12 to 350 KB."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CostsOfFiles:
    """A network with the graph that its costs are of."""

    network: Network
    graph: Graph
    costs: Costs

    @classmethod
    def of(cls, network: Network, inputs: Inputs, graph: Graph | None = None) -> CostsOfFiles:
        """Of a network whose graph is made, or given."""
        graph = graph or network.graph(inputs)
        return cls(network, graph, Costs(network, graph, inputs))

    def file_mb(self, genes: Genes) -> float:
        """What a candidate's file really has."""
        candidate = self.network.space.decode(genes)
        policy = self.network.space.policy(candidate)
        groups = {group: names for group, names in self.graph.groups.items() if group in policy}
        model = subnet(self.graph, self.network.cut(candidate))
        return sum(len(part) for part in uncalibrated(model, groups).outline(policy).parts()) / 1e6

    def off(self, count: int) -> Floats:
        """How far computed sizes are off, relative, of the corners and of random candidates."""
        space = self.network.space
        corners = np.array([space.encode(corner) for corner in space.corners.values()])
        genes = np.concatenate([corners, space.sample(count, np.random.default_rng(0))])
        return np.asarray(self.costs.size_mb(genes) / [self.file_mb(row) for row in genes] - 1)

    def work(self, count: int) -> tuple[Floats, Floats]:
        """``gmacs`` and ``gbitops`` of random candidates, ``(2, count)``: computed, and counted in their graphs."""
        network, groups = self.network, {name: group for group, names in self.graph.groups.items() for name in names}
        genes, counted = network.space.sample(count, np.random.default_rng(1)), []
        for row in genes:
            candidate = network.space.decode(row)
            policy = network.space.policy(candidate)
            work = bits = 0.0
            for name, (_, own) in macs(subnet(self.graph, network.cut(candidate)), self.costs.inputs).items():
                format = format_of(policy[groups[name]] if name in groups else "fp32")
                work += own
                bits += own * format.weight_bits * format.activation_bits
            counted.append((work / 1e9, bits / 1e9))
        return np.stack([self.costs.gmacs(genes), self.costs.gbitops(genes)]), np.array(counted).T
