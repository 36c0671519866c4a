"""Maximum likelihood by gradient descent."""

import math

import torch
from headwater import Trainer
from torch import nn


class Normal(nn.Module):
    """A mean (D,) and the logarithms of D standard deviations."""

    def __init__(self, size):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(size))
        self.log_scale = nn.Parameter(torch.zeros(size))

    def negative_log_likelihood(self, x):
        """The mean over points x (B, D)."""
        z = (x - self.mean) * (-self.log_scale).exp()
        return (0.5 * z.square() + self.log_scale + 0.5 * math.log(2 * math.pi)).sum(1).mean()


class GaussTrainer(Trainer):
    @classmethod
    def facts(cls, config, task):
        return {"size": task.points().shape[1]}

    @classmethod
    def build(cls, config, task, facts):
        return {"normal": Normal(facts["size"])}

    def setup(self):
        self.points = self.task.points()
        self.optimisers["adam"] = torch.optim.Adam(self.modules["normal"].parameters(), self.config.learning_rate)

    def draw(self, k, generator):
        return self.points[torch.randint(len(self.points), (self.config.batch_size,), generator=generator)]

    def step(self, batch):
        loss = self.modules["normal"].negative_log_likelihood(batch)
        self.update(loss, weight=len(batch))
        return {"loss": loss.detach()}
