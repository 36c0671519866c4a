"""Settings of gfn-fl."""

from typing import Literal

from headwater_gfn.config import GFlowNetConfig
from pydantic import Field

__all__ = ["FLConfig"]


class FLConfig(GFlowNetConfig):
    """The objective and what belongs to it; the rest is shared by all GFlowNet methods."""

    objective: Literal["fl-db", "fl-subtb", "db", "subtb", "tb", "fm"] = Field(
        "fl-db",
        description="forward-looking ones learn from the energy of partial objects, the others are baselines",
    )
    terminal_flow: Literal["zero", "const", "free"] = Field(
        "zero",
        description="log Ftilde of terminal states: 0 (the paper, exact), one learned constant (exact), "
        "or the network's output (the official code, biased)",
    )
    lam: float = Field(0.9, gt=0, le=1, description="lambda of SubTB: the weight of a part of length l is lambda^l")
    energy_scale: float = Field(
        1.0, ge=0, le=1, description="weight of the energies of partial objects; the terminal one stays whole"
    )
    incomplete: float = Field(
        0.0, ge=0, le=1, description="share of training trajectories cut at a random step (not for tb)"
    )
