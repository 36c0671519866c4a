"""Peptides of any length up to a most, rewarded by a classifier of the user's labelled sequences."""

import csv
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from headwater import Config, ConfigError, DataError, HeadwaterError
from headwater_gfn.environment import Environment
from headwater_gfn.tasks.objectives import Remembered
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

__all__ = ["RESIDUES", "Peptides", "PeptidesConfig", "features_of", "read_labelled"]

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
FOLDS = 5


class PeptidesConfig(Config):
    """The labelled sequences, and the peptides."""

    data: Path | None = Field(
        None, description="CSV (sequence, label) with labels 1 and 0, as modlamp's AMPvsUniProt.csv; a made-up charge "
        "and hydrophobicity rule without"
    )  # fmt: skip
    longest: PositiveInt = Field(50, description="most residues in a peptide; longer sequences of data are left out")
    reward: Literal["probability", "odds"] = Field(
        "probability", description="the classifier's probability of label 1, or its odds p / (1 - p)"
    )
    floor: PositiveFloat = Field(1e-3, description="the lowest reward")
    mode_probability: float | None = Field(
        None, gt=0, lt=1, description="the lowest probability of a mode; modes are not counted without"
    )


def read_labelled(path: Path, longest: int) -> tuple[list[str], np.ndarray[Any, np.dtype[np.int64]]]:
    """The sequences of at most ``longest`` residues and their labels, 1 or 0.

    A first line that starts with a number (as modlamp's, with counts and names) or has no residues is a heading.

    Raises:
        DataError: the file cannot be read, a line has other residues or labels, or one label is missing.
    """
    words: list[str] = []
    labels: list[int] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line, row in enumerate(csv.reader(file, skipinitialspace=True), 1):
                if line == 1 and (not row or set(row[0].strip().upper()) - set(RESIDUES)):
                    continue
                if len(row) != 2 or row[1].strip() not in ("0", "1"):
                    raise DataError(f"{path}, line {line}: {','.join(row)!r} is no sequence and a label 0 or 1")
                word = row[0].strip().upper()
                strange = set(word) - set(RESIDUES)
                if strange or not word:
                    raise DataError(f"{path}, line {line}: {word!r} has {''.join(sorted(strange)) or 'no residue'}")
                if len(word) <= longest:
                    words.append(word)
                    labels.append(int(row[1]))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no CSV in UTF-8: {error}") from error
    for label in (0, 1):
        if labels.count(label) < FOLDS:
            raise DataError(
                f"{path} has {labels.count(label)} sequences of label {label} with at most {longest} residues"
            )
    return words, np.array(labels)


def features_of(words: list[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Length, share of each residue and of each pair of neighbours: (B, 421)."""
    k = len(RESIDUES)
    found = np.zeros((len(words), 1 + k + k * k))
    for i, word in enumerate(words):
        letters = np.array([RESIDUES.index(c) for c in word])
        found[i, 0] = len(word) / 50
        found[i, 1 : 1 + k] = np.bincount(letters, minlength=k) / len(word)
        if len(word) > 1:
            found[i, 1 + k :] = np.bincount(letters[:-1] * k + letters[1:], minlength=k * k) / (len(word) - 1)
    return found


class Peptides(Environment):
    """States (B, longest + 1): the residues from the left, 20 for none, and 1 at the end once STOP was taken.

    Action c < 20 adds a residue, action 20 is STOP, allowed from one residue on. With ``data`` the reward is that of an
    ensemble of logistic regressions on :func:`features_of`, one for each of five folds.
    """

    stops = True
    config: PeptidesConfig

    def __init__(self, config: PeptidesConfig) -> None:
        super().__init__(config)
        self.most, self.k = config.longest, len(RESIDUES)
        self.n_actions, self.n_backward = self.k + 1, 1
        self.max_len = self.most + 1
        self.state_shape = (self.most + 1,)
        self.n_features = self.most * (self.k + 1)
        self.n_places, self.n_values = self.most, self.k + 1
        self._known = Remembered([self._probabilities])

    # The environment

    def _size(self, s: Tensor) -> Tensor:
        return (s[:, :-1] < self.k).sum(1, keepdim=True)

    def start(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        s = torch.full((n, self.most + 1), self.k, dtype=torch.int64, device=device)
        s[:, -1] = 0
        return s

    def step(self, s: Tensor, a: Tensor) -> Tensor:
        stop = (a == self.k).unsqueeze(1)
        place = torch.where(stop, self.most, self._size(s).clamp_max(self.most - 1))
        return s.scatter(1, place, torch.where(stop, 1, a.unsqueeze(1)))

    def undo(self, s: Tensor, b: Tensor) -> Tensor:
        return s.scatter(1, (self._size(s) - 1).clamp_min(0), self.k)

    def unstop(self, s: Tensor) -> Tensor:
        return torch.cat([s[:, :-1], torch.zeros_like(s[:, -1:])], 1)

    def forward_mask(self, s: Tensor) -> Tensor:
        size = self._size(s)
        grows = (size < self.most).expand(-1, self.k)
        return torch.cat([grows, size > 0], 1)

    def backward_mask(self, s: Tensor) -> Tensor:
        return self._size(s) > 0

    def backward_action(self, s: Tensor, a: Tensor) -> Tensor:
        return torch.zeros_like(a)

    def forward_action(self, s: Tensor, b: Tensor) -> Tensor:
        return s.gather(1, (self._size(s) - 1).clamp_min(0)).squeeze(1)

    def terminal(self, s: Tensor) -> Tensor:
        return s[:, -1] == 1

    def observe(self, s: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(s[:, :-1], self.k + 1).flatten(1).float()

    # Letters

    def space(self) -> dict[str, Any]:
        return {"residues": self.k, "longest": self.most}

    def letters(self, x: Tensor) -> Tensor:
        return x[:, :-1]

    def from_letters(self, letters: Tensor) -> Tensor:
        return torch.cat([letters, torch.ones_like(letters[:, :1])], 1)

    def proper(self, letters: Tensor) -> Tensor:
        ended = letters == self.k
        return (letters[:, 0] < self.k) & (ended[:, 1:] >= ended[:, :-1]).all(1)

    def possible(self, s: Tensor, letters: Tensor) -> Tensor:
        own, values = s[:, :-1].unsqueeze(2), torch.arange(self.k + 1, device=s.device)
        end = values == self.k
        written, over = own < self.k, self.terminal(s).view(-1, 1, 1)
        before = torch.cat([torch.zeros_like(letters[:, :1]), letters[:, :-1]], 1).unsqueeze(2)
        ended = before == self.k
        first = (torch.arange(self.most, device=s.device) == 0).view(1, -1, 1)
        open_ = torch.where(over | ended, end, ~(first & end))
        return torch.where(written, values == own, open_)

    def reaches(self, s: Tensor, x: Tensor) -> Tensor:
        prefix = ((s[:, :-1] == x[:, :-1]) | (s[:, :-1] == self.k)).all(1)
        return torch.where(self.terminal(s), (s == x).all(1), prefix)

    def random_objects(self, n: int, generator: torch.Generator) -> Tensor:
        """Lengths drawn uniformly, then residues: of all peptides, nearly all have the greatest length."""
        device = generator.device
        size = torch.randint(1, self.most + 1, (n, 1), generator=generator, device=device)
        drawn = torch.randint(self.k, (n, self.most), generator=generator, device=device)
        place = torch.arange(self.most, device=device)
        return self.from_letters(torch.where(place < size, drawn, self.k))

    # The reward

    @cached_property
    def _models(self) -> list[Any]:
        """Five classifiers, each on four fifths of the data."""
        try:
            from sklearn.linear_model import LogisticRegression
            from sklearn.model_selection import StratifiedKFold
        except ImportError as error:
            raise HeadwaterError("task.data needs: pip install 'headwater-gfn-oc[amp]'") from error
        assert self.config.data is not None
        words, labels = read_labelled(self.config.data, self.most)
        seen = features_of(words)
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        self._held_out = [held for _, held in folds.split(seen, labels)]
        self._data = (seen, labels)
        return [
            LogisticRegression(C=30.0, max_iter=2000).fit(seen[kept], labels[kept])
            for kept, _ in folds.split(seen, labels)
        ]

    def auroc(self) -> float:
        """The mean over the folds of the area under the ROC curve on the sequences held out.

        Raises:
            ConfigError: there is no data.
        """
        if self.config.data is None:
            raise ConfigError("there is no classifier without task.data")
        from sklearn.metrics import roc_auc_score

        models = self._models
        seen, labels = self._data
        scores = [
            roc_auc_score(labels[held], model.predict_proba(seen[held])[:, 1])
            for model, held in zip(models, self._held_out, strict=True)
        ]
        return float(np.mean(scores))

    def _probabilities(self, words: list[str]) -> Any:
        if self.config.data is not None:
            seen = features_of(words)
            return np.mean([model.predict_proba(seen)[:, 1] for model in self._models], 0)
        # Short, charged and half hydrophobic, as antimicrobial peptides are: a stand-in without a classifier.
        charge = np.array([sum(w.count(c) for c in "KR") - sum(w.count(c) for c in "DE") for w in words])
        greasy = np.array([sum(w.count(c) for c in "AFILMVW") / len(w) for w in words])
        length = np.array([len(w) for w in words])
        score = charge.clip(-6, 6) - 2.0 - 20.0 * (greasy - 0.45) ** 2 - ((length - 20) / 15.0) ** 2
        return 1.0 / (1.0 + np.exp(-score))

    def probabilities(self, x: Tensor) -> Tensor:
        """The probability (B,) of label 1."""
        return self._known(self.describe(x))[:, 0].to(x.device)

    def log_reward(self, x: Tensor) -> Tensor:
        p = self.probabilities(x)
        if self.config.reward == "odds":
            p = p / (1 - p).clamp_min(1e-6)
        return p.clamp_min(self.config.floor).log().float()

    def modes(self, x: Tensor) -> Tensor | None:
        if self.config.mode_probability is None:
            return None
        return torch.where(self.probabilities(x) >= self.config.mode_probability, self.key(x).abs(), -1)

    def describe(self, x: Tensor) -> list[str]:
        return ["".join(RESIDUES[c] for c in row if c < self.k) for row in x[:, :-1].tolist()]

    def parse(self, words: list[str]) -> Tensor:
        rows = []
        for word in words:
            if not 1 <= len(word) <= self.most or set(word) - set(RESIDUES):
                raise ValueError(f"{word!r} is no peptide of 1 to {self.most} residues ({RESIDUES})")
            rows.append([*(RESIDUES.index(c) for c in word), *[self.k] * (self.most - len(word)), 1])
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, self.most + 1)

    @classmethod
    def check(cls, root: Path) -> list[str]:
        """What is wrong with the labelled sequences ``root``."""
        try:
            read_labelled(root, PeptidesConfig.model_validate({}).longest)
        except DataError as error:
            return [str(error)]
        return []
