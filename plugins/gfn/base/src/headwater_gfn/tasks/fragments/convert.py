"""Official checkpoints of the policy network: a gzipped pickle of its parameters, a list of arrays in their order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from headwater import DataError
from headwater.unpickling import load_official
from torch import Tensor

from headwater_gfn.tasks.fragments.library import Block, default_library, read_library
from headwater_gfn.tasks.fragments.policy import GraphPolicy

__all__ = ["from_official", "read_official"]

_AFTER_CONV = (
    "block2emb.0.weight", "block2emb.0.bias", "block2emb.2.weight", "block2emb.2.bias",
    "gru.weight_ih", "gru.weight_hh", "gru.bias_ih", "gru.bias_hh",
    "stem2pred.0.weight", "stem2pred.0.bias", "stem2pred.2.weight", "stem2pred.2.bias",
    "stem2pred.4.weight", "stem2pred.4.bias",
    "global2pred.0.weight", "global2pred.0.bias", "global2pred.2.weight", "global2pred.2.bias",
)  # fmt: skip
_EMBEDDINGS = ("blockemb.weight", "stememb.weight", "bondemb.weight")


def read_official(paths: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a gzipped pickle of 23 arrays.

    The convolution's two arrays come in the order of the library that wrote them: root then bias (torch-geometric 1,
    where the root acts as x W), or bias then root (2, where it acts as x W^T). The hyperparameter ``root`` says which.

    Raises:
        DataError: the file is damaged, or its arrays are not those of the network.
    """
    if len(paths) != 1:
        raise DataError(f"a policy of fragments is one file, and {len(paths)} were given")
    content = load_official(Path(paths[0]))
    expected = 5 + len(_AFTER_CONV)
    if not isinstance(content, list | tuple) or not all(isinstance(x, np.ndarray | Tensor) for x in content):
        raise DataError(f"{paths[0]} holds no list of arrays")
    if len(content) != expected:
        raise DataError(
            f"{paths[0]} holds {len(content)} arrays, and the policy of version v4 has {expected}"
        )
    arrays = [torch.as_tensor(x) for x in content]
    matrix_first = arrays[3].ndim == 2
    conv = ("root", "bias") if matrix_first else ("bias", "root")
    state = dict(zip((*_EMBEDDINGS, *conv, *_AFTER_CONV), arrays, strict=True))
    return state, {"root": "matrix" if matrix_first else "linear"}


def from_official(
    state: Mapping[str, Tensor],
    blocks: Sequence[Block] | str | Path | None = None,
    max_blocks: int = 8,
    steps: int = 10,
    root: str = "linear",
) -> dict[str, GraphPolicy]:
    """Build the policy for a library, or for that in a JSON file; width and flow are seen from the arrays.

    Its messages go from parents to children only, as the official code's do. There the root is the block that was put
    down first; here it is that of the canonical form, from which every molecule can be built too.

    Raises:
        DataError: the arrays do not fit the library, or one is missing or unknown.
    """
    if blocks is None or isinstance(blocks, str | Path):
        blocks = default_library() if blocks is None else read_library(Path(blocks))
    names = {*_EMBEDDINGS, "root", "bias", *_AFTER_CONV}
    if set(state) != names:
        raise DataError(f"the checkpoint lacks or has too many of the arrays {sorted(names ^ set(state))}")
    width, outputs = len(state["bias"]), len(state["global2pred.2.bias"])
    if outputs not in (1, 2):
        raise DataError(f"the graph head has {outputs} outputs; 1 (stop) or 2 (stop and flow) are known")
    policy = GraphPolicy(
        blocks, max_blocks, width, steps, directed=True, root=root, flow=outputs == 2, shared_types=True
    ).to(state["bias"].dtype)
    try:
        policy.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise DataError(f"the checkpoint was made for another library of blocks: {reason}") from error
    return {"policy": policy}
