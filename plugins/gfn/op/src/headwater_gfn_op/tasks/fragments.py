"""Molecules built from fragments with several objectives at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from headwater_gfn.environment import Samples
from headwater_gfn.tasks.fragments import Fragments, FragmentsConfig
from headwater_gfn.tasks.fragments.library import rdkit
from headwater_gfn.tasks.fragments.molecules import Molecule
from headwater_gfn.tasks.fragments.rewards import Scorer, make_scorer
from headwater_gfn.tasks.objectives import ObjectiveConfig, ObjectiveEnvironment, Remembered
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

__all__ = ["ObjectiveFragments", "ObjectiveFragmentsConfig", "lightness"]


class ObjectiveFragmentsConfig(FragmentsConfig, ObjectiveConfig):
    """The library of blocks and the objectives."""

    objectives: tuple[str, ...] = Field(
        ("qed", "sa"),
        min_length=1,
        description="qed, sa, logp, mw (light molecules), seh (with proxy), or scorers of SMILES as 'module:function'",
    )
    reward: Literal["objectives"] = Field("objectives", description="the scalar reward is made of the objectives")
    beta: PositiveFloat = Field(1.0, description="log R = beta log(max(weighted sum of the objectives, floor))")
    max_blocks: int = Field(9, ge=1, le=16, description="a molecule of so many blocks can only stop")

    @model_validator(mode="after")
    def _fits(self) -> "ObjectiveFragmentsConfig":
        if self.min_blocks > self.max_blocks:
            raise ValueError(f"min_blocks = {self.min_blocks} is more than max_blocks = {self.max_blocks}")
        if ("seh" in self.objectives) != (self.proxy is not None):
            raise ValueError("the objective 'seh' needs the proxy's weights (proxy), and no other takes them")
        return self


def lightness(mol: Any) -> float:
    """(300 - M) / 700 + 1, cut to between 0 and 1, of the molecular weight M: 1 up to 300, 0 from 1,000 on."""
    weight = float(rdkit("Chem.Descriptors").MolWt(mol))
    return min(max((300.0 - weight) / 700.0 + 1.0, 0.0), 1.0)


class ObjectiveFragments(ObjectiveEnvironment, Fragments):
    """States, actions and files are those of :class:`Fragments`; the objectives are scored once for each molecule."""

    suffixes = Fragments.suffixes
    config: ObjectiveFragmentsConfig

    def __init__(self, config: ObjectiveFragmentsConfig) -> None:
        """Read the library.

        Raises:
            UsageError: RDKit is not installed.
            ConfigError: an objective is none that there is.
            DataError: the library or the proxy cannot be used.
            PluginError: a scorer cannot be imported.
        """
        Fragments.__init__(self, config)
        self._remembered = Remembered([self._column(name) for name in config.objectives], config.cache_size)
        self.set_objectives([name.rpartition(":")[2] for name in config.objectives])

    def _column(self, name: str) -> Any:
        def light(molecules: Sequence[Molecule]) -> list[float]:
            return [lightness(m.mol) for m in molecules]

        score: Scorer = light if name == "mw" else make_scorer(self.config.model_copy(update={"reward": name}))
        return lambda rows: score([self._molecule(row) for row in rows])

    def raw_objectives(self, x: Tensor) -> Tensor:
        return self._remembered([tuple(row) for row in x[:, :-1].tolist()]).to(x.device)

    def values(self, s: Tensor) -> Tensor:
        """The weighted sum of the objectives (B,)."""
        return (self.objectives(s) * self._weights.to(s.device)).sum(1)

    def log_reward(self, x: Tensor) -> Tensor:
        return (self.config.beta * ObjectiveEnvironment.log_reward(self, x).double()).float()

    def write(self, samples: Samples, path: Path, start: int = 0) -> None:
        """Write as :class:`Fragments` does; a table (``.csv``) has the objectives as well."""
        if path.name.endswith(".csv"):
            ObjectiveEnvironment.write(self, samples, path, start)
        else:
            Fragments.write(self, samples, path, start)

    def pictures(self, policies: dict[str, Any]) -> Any:
        return [*ObjectiveEnvironment.pictures(self, policies), *Fragments.pictures(self, policies)]

    def make_policy(self, hidden: tuple[int, ...], activation: str) -> torch.nn.Module:
        return Fragments.make_policy(self, hidden, activation)
