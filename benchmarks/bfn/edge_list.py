"""CrysBFN written plainly: an edge list, and a flow that draws all n messages; what the published code computes.

Weights have the published names, so the state dict of one network fits the other. Written for the benchmark from the
paper's description; nothing is made slower than it needs to be in this form.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["EdgeListNet", "end_back_sample", "simulate_flow", "training_loss"]


class Layer(nn.Module):
    def __init__(self, width: int, frequencies: int) -> None:
        super().__init__()
        edge, node = 2 * width + 9 + 6 * frequencies, 2 * width
        self.edge_mlp = nn.Sequential(nn.Linear(edge, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.node_mlp = nn.Sequential(nn.Linear(node, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, inner: Tensor, edges: Tensor, graph: Tensor, features: Tensor) -> Tensor:
        z = self.layer_norm(h)
        i, j = edges
        message = self.edge_mlp(torch.cat([z[i], z[j], inner[graph[i]], features], 1))
        total = torch.zeros_like(z).index_add(0, i, message)
        count = torch.zeros(len(z), 1, dtype=z.dtype).index_add(0, i, torch.ones(len(i), 1, dtype=z.dtype))
        return h + self.node_mlp(torch.cat([z, total / count], 1))


class EdgeListNet(nn.Module):
    def __init__(
        self, types: int, width: int, layers: int, frequencies: int, time_width: int = 128, given_types: bool = False
    ) -> None:
        super().__init__()
        self.frequencies, self.time_width, self.layers = frequencies, time_width, layers
        self.node_embedding = nn.Embedding(types, width) if given_types else nn.Linear(types, width)
        self.atom_latent_emb = nn.Linear(width + time_width + 3, width)
        for k in range(layers):
            self.add_module(f"csp_layer_{k}", Layer(width, frequencies))
        self.final_layer_norm = nn.LayerNorm(width)
        self.coord_out = nn.Linear(width, 3, bias=False)
        self.lattice_out = nn.Linear(width, 9, bias=False)
        self.type_out = nn.Linear(width, types)

    def forward(
        self, i: Tensor, types: Tensor, angles: Tensor, lattice: Tensor, log_accuracy: Tensor, num_atoms: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        graph = torch.repeat_interleave(torch.arange(len(num_atoms)), num_atoms)
        # All pairs inside a crystal, by a block-diagonal matrix of all atoms.
        edges = torch.block_diag(*(torch.ones(n, n) for n in num_atoms.tolist())).nonzero().t()
        d = angles[edges[1]] - angles[edges[0]]
        d = d - 2 * math.pi * (d / (2 * math.pi)).round()
        with torch.no_grad():
            phase = (d.unsqueeze(-1) * torch.arange(self.frequencies)).flatten(1)
            features = torch.cat([phase.sin(), phase.cos()], 1)
        half = self.time_width // 2
        phase = i.float().unsqueeze(1) * torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
        time = torch.cat([phase.sin(), phase.cos()], 1)[graph]
        h = self.atom_latent_emb(torch.cat([self.node_embedding(types), time, log_accuracy], 1))
        inner = (lattice @ lattice.transpose(1, 2)).flatten(1)
        for k in range(self.layers):
            h = self.get_submodule(f"csp_layer_{k}")(h, inner, edges, graph, features)
        h = self.final_layer_norm(h)
        mean = torch.zeros(len(num_atoms), h.shape[1]).index_add(0, graph, h) / num_atoms.unsqueeze(1)
        return self.lattice_out(mean).view(-1, 3, 3) @ lattice, self.coord_out(h), self.type_out(h)


def simulate_flow(x: Tensor, steps: Tensor, alpha: Tensor, beta1: float) -> tuple[Tensor, Tensor]:
    """Means and log accuracies after ``steps`` (V,) messages: all n are drawn for every angle, then some are summed."""
    n = len(alpha)
    law = torch.distributions.VonMises(x.double(), alpha.view(n, 1, 1).expand(n, *x.shape), validate_args=False)
    y = law.sample()
    taken = (torch.arange(n).view(n, 1, 1) < steps.view(1, -1, 1)) * alpha.view(n, 1, 1)
    sine, cosine = (taken * y.sin()).sum(0), (taken * y.cos()).sum(0)
    low = math.log(1e-7)
    accuracy = ((torch.hypot(sine, cosine) + 1e-7).log() - low) / (math.log(beta1) - low)
    mean = torch.where(steps.view(-1, 1) == 0, (2 * torch.rand(x.shape) - 1) * math.pi, torch.atan2(sine, cosine))
    return mean.float(), accuracy.float()


def _mean_resultant(k: Tensor) -> Tensor:
    return torch.special.i1e(k) / torch.special.i0e(k)


def training_loss(net: nn.Module, data: dict[str, Tensor], alpha: Tensor, settings: Any) -> Tensor:
    """The loss of one batch: draw steps and flows, call the network, add the three losses."""
    n, sigma1, k = len(alpha), settings["sigma1"], settings["types"]
    num_atoms = data["num_atoms"]
    graph = torch.repeat_interleave(torch.arange(len(num_atoms)), num_atoms)
    i = torch.randint(1, n + 1, (len(num_atoms),))
    t, of_atom = (i - 1) / n, i[graph]
    gamma = (1 - sigma1 ** (2 * t)).view(-1, 1, 1)
    lattice = gamma * data["lattice"] + (gamma * (1 - gamma)).sqrt() * torch.randn_like(data["lattice"])
    types = data["types"]
    if settings["target"] == "gen":
        target = torch.nn.functional.one_hot(data["types"], k).float()
        beta = (settings["beta1_types"] * t * t)[graph].unsqueeze(1)
        theta = (beta * (k * target - 1) + (beta * k).sqrt() * torch.randn_like(target)).softmax(1)
        types = 2 * theta - 1
    mean, accuracy = simulate_flow(data["angles"], of_atom - 1, alpha, settings["beta1"])
    out_lattice, shift, logits = net(i, types, mean, lattice, accuracy, num_atoms)
    weight = n * (1 - sigma1 ** (2 / n)) / (2 * sigma1 ** (2 * i / n))
    loss = (weight.view(-1, 1, 1) * (data["lattice"] - out_lattice) ** 2).mean()
    a = alpha[of_atom - 1].unsqueeze(1)
    images = data["angles"].unsqueeze(-1) + 2 * math.pi * torch.arange(-10, 11)
    estimate = torch.remainder(mean + shift + math.pi, 2 * math.pi) - math.pi
    squared = (images - estimate.unsqueeze(-1)).square().amin(-1)
    loss = loss + ((n * a * _mean_resultant(a)).float() * squared).mean()
    if settings["target"] == "gen":
        error = (target - logits.softmax(1)).square().sum(1)
        loss = loss + (k * settings["beta1_types"] * t[graph] * error).mean()
    return loss


def end_back_sample(
    net: nn.Module, num_atoms: Tensor, types: Tensor | None, alpha: Tensor, settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Cells, angles and logits of types after n network calls."""
    n, sigma1, k = len(alpha), settings["sigma1"], settings["types"]
    v, b = int(num_atoms.sum()), len(num_atoms)
    mean, accuracy = (2 * torch.rand(v, 3) - 1) * math.pi, torch.zeros(v, 3)
    lattice = torch.zeros(b, 3, 3)
    read = torch.full((v, k), 2 / k - 1) if types is None else types
    for i in range(1, n + 1):
        out_lattice, shift, logits = net(torch.full((b,), i), read, mean, lattice, accuracy, num_atoms)
        estimate = torch.remainder(mean + shift + math.pi, 2 * math.pi) - math.pi
        if i == n:
            break
        mean, accuracy = simulate_flow(estimate, torch.full((v,), i), alpha, settings["beta1"])
        gamma = 1 - sigma1 ** (2 * i / n)
        lattice = gamma * out_lattice + math.sqrt(gamma * (1 - gamma)) * torch.randn(b, 3, 3)
        if types is None:
            p, beta = logits.softmax(1).clamp_min(1e-6), settings["beta1_types"] * (i / n) ** 2
            read = 2 * (beta * (k * p - 1) + math.sqrt(beta * k) * torch.randn(v, k)).softmax(1) - 1
    return out_lattice, estimate, logits
