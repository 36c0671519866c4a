"""One block of points."""

import torch
from headwater import Sampler


class GaussSampler(Sampler):
    def block(self, k, generator, condition):
        normal = self.modules["normal"]
        noise = torch.randn(self.block_size, self.facts["size"], generator=generator, device=self.place.device)
        return (normal.mean + condition.temperature * normal.log_scale.exp() * noise).cpu()
