"""RNA that binds to hidden targets: the landscapes of FLEXS, whose energies ViennaRNA computes."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from headwater import HeadwaterError
from headwater_gfn.tasks.objectives import Remembered
from headwater_gfn.tasks.strings import Strings, StringsConfig
from pydantic import Field, PositiveInt
from torch import Tensor

__all__ = ["TARGETS", "RNABinding", "RNABindingConfig"]

TARGETS = (
    "GAACGAGGCACAUUCCGGCUCGCCCGGCCCAUGUGAGCAUGGGCCGGACCCCGUCCGCGCGGGGCCCCCGCGCGGACGGGGGCGAGCCGGAAUGUGCCUC",
    "GAGGCACAUUCCGGCUCGCCCCCGUCCGCGCGGGGGCCCCGCGCGGACGGGGUCCGGCCCGCGCGGGGCCCCCGCGCGGGAGCCGGAAUGUGCCUCGUUC",
    "CCGGUGAUACUGUUAGUGGUCACGGUGCAUUUAUAGCGCUAAAGUACAGUCUUCCCCUGUUGAACGGCGCCAUUGCAUACAGGGCCAGCCGCGUAACGCC",
    "UAAGAGAGCGUAAAAAUAGAGAUAUGUUCUUGGGUCAGGGCUAUGCGUACCCCAUGAGAGUAAAUCAUACCCCCAAUGGGCUUCGGCGGAAAUUCACUUA",
)
COMPLEMENT = str.maketrans("ACGU", "UGCA")


class RNABindingConfig(StringsConfig):
    """The strings and the targets that they are to bind to."""

    alphabet: str = Field("ACGU", pattern="^ACGU$", description="the letters")
    length: PositiveInt = Field(14, description="letters in a whole string")
    reward: str = Field(
        "1", pattern=r"^[1-4](\+[1-4])*$", description="the targets by number, 1 to 4; several as '1+2'"
    )
    mode_score: float | None = Field(None, description="the lowest score of a mode; modes are not counted without")

    def _check_reward(self) -> None:
        given = [name for name in ("table", "objectives", "ranking", "mode_list") if getattr(self, name) is not None]
        if given:
            raise ValueError(f"{given[0]} is given, but rna-binding computes its scores")


class RNABinding(Strings):
    """Strings of RNA. The score is the mean over the targets of the energy of the best duplex, over that of the
    reverse complement of the target scaled to as many letters: 0 where nothing binds, about 1 where all does.
    """

    config: RNABindingConfig

    def _set_scores(self, config: StringsConfig) -> None:
        self._table = None
        self._functions = Remembered([self._scores])
        self.n_states = None
        self.set_objectives(["binding"])

    @cached_property
    def _vienna(self) -> Any:
        try:
            import RNA
        except ImportError as error:
            raise HeadwaterError("rna-binding needs: pip install 'headwater-gfn-oc[rna]'") from error
        return RNA

    @cached_property
    def _targets(self) -> list[tuple[str, float]]:
        """The targets, and the energy that a string of this length has at best."""
        chosen = [TARGETS[int(i) - 1] for i in self.config.reward.split("+")]
        fold = self._vienna.duplexfold
        return [(t, fold(t[::-1].translate(COMPLEMENT), t).energy * self.length / len(t)) for t in chosen]

    def _scores(self, words: list[str]) -> Any:
        fold = self._vienna.duplexfold
        energies = [[fold(target, word).energy / norm for target, norm in self._targets] for word in words]
        return np.array(energies).mean(1)

    def modes(self, x: Tensor) -> Tensor | None:
        if self.config.mode_score is None:
            return None
        return torch.where(self.raw_objectives(x)[:, 0] >= self.config.mode_score, self._numbers(x), -1)
