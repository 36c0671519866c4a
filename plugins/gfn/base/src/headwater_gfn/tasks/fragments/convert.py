"""Official checkpoints of the policy network: a gzipped pickle of its parameters, a list of arrays in their order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from headwater import DataError
from torch import Tensor

from headwater_gfn.tasks.fragments.library import Block, default_library, read_library
from headwater_gfn.tasks.fragments.policy import GraphPolicy

__all__ = ["from_official", "name_arrays"]

_AFTER_CONV = (
    "block2emb.0.weight", "block2emb.0.bias", "block2emb.2.weight", "block2emb.2.bias",
    "gru.weight_ih", "gru.weight_hh", "gru.bias_ih", "gru.bias_hh",
    "stem2pred.0.weight", "stem2pred.0.bias", "stem2pred.2.weight", "stem2pred.2.bias",
    "stem2pred.4.weight", "stem2pred.4.bias",
    "global2pred.0.weight", "global2pred.0.bias", "global2pred.2.weight", "global2pred.2.bias",
)  # fmt: skip
_EMBEDDINGS = ("blockemb.weight", "stememb.weight", "bondemb.weight")


def name_arrays(arrays: Sequence[Any], path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Give the 23 arrays of a checkpoint their names.

    The convolution's two arrays come in the order of the library that wrote them: root then bias (torch-geometric 1,
    where the root acts as x W), or bias then root (2, where it acts as x W^T). The hyperparameter ``root`` says which.

    Raises:
        DataError: the arrays are not those of the network.
    """
    expected = 5 + len(_AFTER_CONV)
    if not all(isinstance(x, np.ndarray | Tensor) for x in arrays):
        raise DataError(f"{path} holds no list of arrays")
    if len(arrays) != expected:
        raise DataError(f"{path} holds {len(arrays)} arrays, and the policy of version v4 has {expected}")
    tensors = [torch.as_tensor(x) for x in arrays]
    matrix_first = tensors[3].ndim == 2
    conv = ("root", "bias") if matrix_first else ("bias", "root")
    state = dict(zip((*_EMBEDDINGS, *conv, *_AFTER_CONV), tensors, strict=True))
    return state, {"root": "matrix" if matrix_first else "linear"}


def from_official(
    state: Mapping[str, Tensor],
    blocks: Sequence[Block] | str | Path | None = None,
    max_blocks: int = 8,
    steps: int = 10,
    root: str = "linear",
) -> dict[str, GraphPolicy]:
    """Build the policy for a library, or for that in a JSON file; the width is seen from the arrays.

    A graph head without a log flow (trajectory balance) gets one that is zero.

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
    state = dict(state)
    if outputs == 1:
        for name in ("global2pred.2.weight", "global2pred.2.bias"):
            state[name] = torch.cat([state[name], torch.zeros_like(state[name])])
    policy = GraphPolicy(blocks, max_blocks, width, steps, directed=True, root=root, shared_types=True)
    policy = policy.to(state["bias"].dtype)
    try:
        policy.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise DataError(f"the checkpoint was made for another library of blocks: {reason}") from error
    return {"policy": policy}
