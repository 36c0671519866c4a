import sys
from pathlib import Path

import pytest
import torch
from headwater_gfn.table import TableEnvironment
from headwater_gfn.tasks.bits import BitSequence, BitSequenceConfig
from headwater_gfn.tasks.hypergrid import HyperGrid, HyperGridConfig
from headwater_gfn.tasks.sets import SetGeneration, SetGenerationConfig

sys.path.insert(0, str(Path(__file__).parent))  # the oracle is imported by name

SMALL = {
    "grid": lambda: HyperGrid(HyperGridConfig(dimensions=2, side=5, reward="standard")),
    "grid-3d": lambda: HyperGrid(HyperGridConfig(dimensions=3, side=4, reward="cosine")),
    "waves": lambda: HyperGrid(HyperGridConfig(dimensions=2, side=6, reward="waves")),
    "sets": lambda: SetGeneration(SetGenerationConfig(n_items=8, set_size=4)),
    "bits": lambda: BitSequence(BitSequenceConfig(bits=8, word=2, n_modes=3)),
    "bits-in-order": lambda: BitSequence(BitSequenceConfig(bits=8, word=2, n_modes=3, any_order=False)),
}


@pytest.fixture(params=SMALL)
def environment(request):
    return SMALL[request.param]()


@pytest.fixture
def table(environment):
    return TableEnvironment(environment)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
