"""What a molecule is worth: functions from molecules to values, and the mapping from values to log R."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from headwater import ConfigError, PluginError
from torch import Tensor

from headwater_gfn.functions import imported
from headwater_gfn.tasks.fragments.library import rdkit
from headwater_gfn.tasks.fragments.molecules import Molecule

if TYPE_CHECKING:
    from headwater_gfn.tasks.fragments.environment import FragmentsConfig

__all__ = ["Scorer", "log_reward_of", "logp", "make_scorer", "qed", "sa"]

Scorer = Callable[[Sequence[Molecule]], list[float]]


def log_reward_of(values: Tensor, beta: float, floor: float) -> Tensor:
    """log R = beta log(max(value, floor)), shape of ``values``."""
    return beta * values.clamp_min(floor).log()


def qed(mol: Any) -> float:
    """Quantitative estimate of drug-likeness (Bickerton et al., 2012), between 0 and 1."""
    return float(rdkit("Chem.QED").qed(mol))


def sa(mol: Any) -> float:
    """Ease of synthesis: (10 - SA) / 9 with the score SA of Ertl and Schuffenhauer (2009), 1 (easy) to 10 (hard)."""
    return (10.0 - float(rdkit("Contrib.SA_Score.sascorer").calculateScore(mol))) / 9.0


def logp(mol: Any) -> float:
    """Crippen's logP on the way from -2 to 8: (logP + 2) / 10, cut to between 0 and 1."""
    return min(max((float(rdkit("Chem.Crippen").MolLogP(mol)) + 2.0) / 10.0, 0.0), 1.0)


_OF_MOL: dict[str, Callable[[Any], float]] = {"qed": qed, "sa": sa, "logp": logp}


def make_scorer(config: "FragmentsConfig") -> Scorer:
    """The scorer that the config names; its values are checked.

    Raises:
        ConfigError: the name is none of the scorers and no import string.
        PluginError: the user's scorer cannot be imported or is no function.
    """
    name = config.reward
    if name in _OF_MOL:
        one = _OF_MOL[name]
        return _checked(name, lambda molecules: [one(m.mol) for m in molecules])
    if name == "seh":
        from headwater_gfn.tasks.fragments.proxy import load_proxy

        assert config.proxy is not None
        proxy = load_proxy(config.proxy, root=config.proxy_root)
        return _checked(name, lambda molecules: proxy.score(molecules) / 8.0)
    if ":" not in name:
        raise ConfigError(f"task.reward = {name!r} is none of qed, sa, logp, seh and no 'package.module:function'")
    scorer = imported(name, "task.reward")
    return _checked(name, lambda molecules: scorer([m.smiles for m in molecules]))


def _checked(name: str, score: Callable[[Sequence[Molecule]], Any]) -> Scorer:
    def checked(molecules: Sequence[Molecule]) -> list[float]:
        try:
            found = score(molecules)
            if isinstance(found, torch.Tensor):
                found = found.detach().cpu()
            values = np.asarray(found, dtype=np.float64)
        except Exception as error:  # the user's scorer may raise anything
            raise PluginError(
                f"the scorer {name!r} failed on {len(molecules)} molecules, the first {molecules[0].smiles!r}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if values.shape != (len(molecules),):
            raise PluginError(
                f"the scorer {name!r} gave an array of shape {values.shape} for {len(molecules)} molecules, "
                f"the first {molecules[0].smiles!r}; it must give one number for each"
            )
        for molecule, value in zip(molecules, values.tolist(), strict=True):
            if not math.isfinite(value):
                raise PluginError(f"the scorer {name!r} gave {value} for {molecule.smiles!r}")
        return [float(v) for v in values.tolist()]

    return checked
