"""Semi-synthetic: 700 real blood cells, as scanpy ships them (pbmc68k_reduced), with a response that is made.

A population is a mixture of the real cells, with other shares of the cell types each time. Its response depends on who
else is there: every cell goes part of the way to the mean of its nearest neighbours in the population, and all are
pushed along the difference between the population's mean and that of all cells. A model that does not see the
population can learn only the average of that.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from headwater import DataError, seeding
from pydantic import Field, NonNegativeInt, PositiveInt

from headwater_flow_meta.networks import neighbour_mean
from headwater_flow_meta.tasks.files import checked, column, read_h5ad, read_table
from headwater_flow_meta.tasks.populations import Data, Population, PopulationConfig, PopulationTask

__all__ = ["PBMCResponse", "PBMCResponseConfig"]

FILE = "10x_pbmc68k_reduced.h5ad"


class PBMCResponseConfig(PopulationConfig):
    """Where the cells are, how many populations are mixed of them, and how strong the response is."""

    file: Path | None = Field(None, description="pbmc68k_reduced as h5ad; the one that scanpy ships without")
    components: PositiveInt = Field(10, description="principal components that are used, of obsm X_pca")
    cell_type: str = Field("bulk_labels", description="column of obs that names the cell type")
    populations: PositiveInt = Field(60, ge=5, description="populations in all: of every five, four to train on")
    cells: PositiveInt = Field(200, ge=2, description="cells of each, drawn without replacement")
    pull: float = Field(0.5, description="share of the way to the mean of the 20 nearest neighbours")
    push: float = Field(1.0, description="factor on the difference of the means")
    seed: NonNegativeInt = Field(0, description="seed of the mixtures")


def cells_of_scanpy() -> Path:
    """The file in the installed scanpy, which is not imported.

    Raises:
        DataError: it is not there.
    """
    spec = find_spec("scanpy")
    path = Path(spec.origin).parent / "datasets" / FILE if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise DataError(f"{FILE} is not here: pip install scanpy, which ships it, or set task.file")
    return path


class PBMCResponse(PopulationTask):
    """Mixtures of real blood cells with a made response."""

    config: PBMCResponseConfig
    standardise = True

    def load(self) -> Data:
        config = self.config
        path = config.file or cells_of_scanpy()
        found = read_h5ad(path)
        names, values = read_table(found, "obsm:X_pca", path)
        if config.components > len(names):
            raise DataError(f"{path} has {len(names)} components; task.components = {config.components}")
        features = names[: config.components]
        x = checked(values[:, : config.components], str(path), features, list(map(str, found.obs_names)))
        if config.cells > len(x):
            raise DataError(f"{path} has {len(x)} cells; task.cells = {config.cells}")
        typed = column(found, config.cell_type, path, "task.cell_type")
        types = tuple(sorted(set(typed)))
        labels = torch.tensor([types.index(t) for t in typed])
        splits: dict[str, list[Population]] = {"train": [], "valid": [], "test": []}
        for i in range(config.populations):
            generator = seeding.generator(config.seed, i)
            # Exponential weights of the types are a flat Dirichlet draw.
            share = torch.empty(len(types)).exponential_(generator=generator)
            rows = torch.multinomial(share[labels], config.cells, generator=generator)
            split = "train" if i % 5 < 4 else ("valid" if i % 10 == 4 else "test")
            source = x[rows]
            target = self.response(source, x.mean(0))
            name = f"mixture-{i:03d}"
            splits[split].append(Population(name, source, target, labels[rows], paired=True, where=f"{path}, {name}"))
        return Data(features, splits, (), types)

    def response(self, source: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Where the cells (n, D) of one population go, given the mean (D,) of all cells."""
        nearby = neighbour_mean(source.unsqueeze(0), 20)(source.unsqueeze(0))[0]
        return source + self.config.pull * (nearby - source) + self.config.push * (source.mean(0) - mean)
