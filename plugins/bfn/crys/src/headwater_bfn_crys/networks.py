"""The network of CrysBFN: CSPNet of DiffCSP with the accuracy of each coordinate among its inputs.

Every atom hears from all atoms of its crystal, itself included. Coordinates enter as differences only and the lattice
as its inner products, so outputs follow translations, rotations and permutations.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from headwater_bfn_crys.layout import Layout
from headwater_bfn_crys.lookup import Tabulated, Terms, terms_of
from headwater_bfn_crys.messages import messages, messages_fused

__all__ = ["CSPNet", "time_embedding"]


def time_embedding(i: Tensor, width: int) -> Tensor:
    """sin and cos of the step number times width/2 frequencies from 1 down to 1e-4, (B,) to (B, width)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=i.device) * (-math.log(10000) / (half - 1)))
    phase = i.float().unsqueeze(1) * frequencies
    return torch.cat([phase.sin(), phase.cos()], 1)


def _perceptron(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())


class Layer(nn.Module):
    """One round of messages, with the official layout of weights: [z_i, z_j, lattice (9), sin, cos of distances]."""

    def __init__(self, width: int, frequencies: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.edge_mlp = _perceptron(2 * width + 9 + 6 * frequencies, width)
        self.node_mlp = _perceptron(2 * width, width)
        self.layer_norm = nn.LayerNorm(width)
        self.keep_table = False
        self._table: Tensor | None = None

    def forget(self, keep_table: bool) -> None:
        """Forget the table of what distances contribute; from now on keep it from one call to the next, or do not."""
        self.keep_table, self._table = keep_table, None

    def _values(self, terms: Terms, even: Tensor, odd: Tensor) -> Tensor:
        if not (self.keep_table and isinstance(terms, Tabulated)):
            return terms.values(even, odd)
        if self._table is None:
            self._table = terms.values(even, odd)
        return self._table

    def forward(
        self, h: Tensor, inner: Tensor, crystal_of: Tensor, pairs: Terms | tuple[Tensor, Tensor], layout: Layout
    ) -> Tensor:
        """New states of the atoms (V, H); ``pairs`` are :class:`Terms`, or sines and cosines of the differences."""
        z = self.layer_norm(h)
        first: Any = self.edge_mlp[0]
        second: Any = self.edge_mlp[2]
        half = 3 * self.frequencies
        of_i, of_j, of_cell, odd, even = first.weight.split([z.shape[1], z.shape[1], 9, half, half], 1)
        a = linear(z, of_i)
        b = linear(z, of_j) + linear(inner, of_cell, first.bias).index_select(0, crystal_of)
        if isinstance(pairs, Terms):
            received = messages_fused(layout, pairs, self._values(pairs, even, odd), a, b, second.weight, second.bias)
        else:
            sine, cosine = pairs
            received = messages(layout, a, b, cosine, sine, even, odd, second.weight, second.bias)
        return h + self.node_mlp(torch.cat([z, received], 1))


class CSPNet(nn.Module):
    """Estimates of cell, coordinates and types from the beliefs before message i.

    Args:
        types: K, how many elements.
        width: of all hidden layers.
        layers: rounds of messages.
        frequencies: of the distance features, 0 included.
        time_width: width of the embedding of i.
        given_types: types are data (an index each) and not beliefs (K numbers each).
    """

    def __init__(
        self, types: int, width: int, layers: int, frequencies: int, time_width: int = 128, given_types: bool = False
    ) -> None:
        super().__init__()
        self.frequencies, self.time_width = frequencies, time_width
        self.node_embedding = nn.Embedding(types, width) if given_types else nn.Linear(types, width)
        self.atom_latent_emb = nn.Linear(width + time_width + 3, width)
        self.layers = layers
        for k in range(layers):
            self.add_module(f"csp_layer_{k}", Layer(width, frequencies))
        self.final_layer_norm = nn.LayerNorm(width)
        self.coord_out = nn.Linear(width, 3, bias=False)
        self.lattice_out = nn.Linear(width, 9, bias=False)
        self.type_out = nn.Linear(width, types)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """For many calls with the same weights, without gradients: what depends on weights alone is computed once."""
        layers: list[Any] = [self.get_submodule(f"csp_layer_{k}") for k in range(self.layers)]
        try:
            for layer in layers:
                layer.forget(keep_table=True)
            with torch.no_grad():
                yield
        finally:
            for layer in layers:
                layer.forget(keep_table=False)

    def forward(
        self, i: Tensor, types: Tensor, angles: Tensor, lattice: Tensor, log_accuracy: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The estimated lattice (B, 3, 3), shift of the coordinates (V, 3) and logits of the types (V, K).

        Args:
            i: (B,), the number of the message to come.
            types: (V, K), 2 theta - 1; or (V,), indices, where types are given.
            angles: (V, 3), the coordinates' means, in radians.
            lattice: (B, 3, 3), mean of the lattice, vectors as rows.
            log_accuracy: (V, 3), from :func:`headwater_bfn.vonmises.log_accuracy`.
            layout: of the batch.
        """
        fused = (
            angles.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
        )
        crystal_of = layout.crystal_of(angles.device)
        embedded = self.node_embedding(types)
        time = time_embedding(i, self.time_width).to(embedded.dtype)[crystal_of]
        h = self.atom_latent_emb(torch.cat([embedded, time, log_accuracy], 1))
        with torch.no_grad():
            features = partial(terms_of, layout=layout) if fused else layout.features
            pairs = features(angles, self.frequencies)
        inner = (lattice @ lattice.transpose(1, 2)).flatten(1)
        for k in range(self.layers):
            h = self.get_submodule(f"csp_layer_{k}")(h, inner, crystal_of, pairs, layout)
        h = self.final_layer_norm(h)
        mixed = self.lattice_out(layout.mean_over_atoms(h)).view(-1, 3, 3) @ lattice
        return mixed, self.coord_out(h), self.type_out(h)
