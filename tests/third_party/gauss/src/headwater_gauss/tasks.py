"""Points as CSV files; ``Points`` is the base of every task of the kind ``gauss.points``."""

from abc import abstractmethod

import torch
from headwater import DataError, Task


class Points(Task):
    """Points as a float tensor (N, D), which a subclass gives as ``points()``."""

    kind = "gauss.points"
    suffixes = (".csv",)

    @abstractmethod
    def points(self):
        """The points to learn from (N, D)."""

    def write(self, samples, path, start=0):
        path.write_text("".join(",".join(f"{v:.9g}" for v in row) + "\n" for row in samples.tolist()))

    def read(self, path):
        try:
            return torch.tensor([[float(v) for v in line.split(",")] for line in path.read_text().splitlines()])
        except ValueError as error:
            raise DataError(f"{path} holds no points: {error}") from error

    def metrics(self, samples):
        return {"mean_error": float((samples.mean(0) - self.points().mean(0)).norm())}


class Cloud(Points):
    """A round cloud of 500 points."""

    def points(self):
        noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        return torch.tensor(self.config.centre) + 0.5 * noise
