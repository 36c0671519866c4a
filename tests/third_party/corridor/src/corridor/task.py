"""The corridor."""

import torch
from headwater import Config
from headwater_gauss.tasks import Points
from pydantic import Field, PositiveFloat


class CorridorConfig(Config):
    length: PositiveFloat = Field(4.0, description="how long it is, from the origin along x")


class Corridor(Points):
    """Points in the rectangle from (0, -0.1) to (length, 0.1)."""

    def points(self):
        unit = torch.rand(400, 2, generator=torch.Generator().manual_seed(1))
        return unit * torch.tensor([self.config.length, 0.2]) - torch.tensor([0.0, 0.1])
