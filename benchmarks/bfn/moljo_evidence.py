"""Guided sampling with an exact Bayes network: no training, and a known answer.

The data are 160 conformers of 40 molecules of nine heavy atoms, all alike probable. The posterior of a belief is then
a sum over 160 terms, so x_hat, e_hat and P = E[r | belief] are exact, r being QED rescaled to 0.02..0.98. A chain is
scored by the r of the conformer that its last belief makes most probable. The same noise serves all arms. Arms, sizes
and the pass marks were fixed before the first run, as the specification of this experiment has them:

- joint - coordinates >= 2 standard errors at k = 1 and k = 10;
- joint at k = 10 - joint at k = 1 >= 3 standard errors;
- unguided within 2 standard errors of the mean of the data;
- joint, s = 1, k = 1 within 2 standard errors of the exact tilted mean sum r^2 / sum r.

Differences are of independent means: common noise makes true errors smaller than those stated, never larger.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from headwater_bfn_moljo import chains, guidance
from headwater_bfn_moljo.flow import Belief
from torch import Tensor

RESULT = Path(__file__).resolve().parents[1] / "results" / "bfn-moljo-exact.json"
SIGMA1, BETA1, STEPS, CONFORMERS, SEED = 0.03, 1.5, 50, 4, 7
SMILES = """
c1ccccc1CCN c1ccccc1CCO c1ccccc1C(=O)C c1ccc(C)cc1CO CC(=O)Nc1ccco1 c1ccncc1CCN c1cncnc1CCO c1ccc(O)cc1CN
c1ccc(N)cc1CO C1CCNCC1CCO C1CCOCC1CCN CCCCCCCCN CCCCCCCCO CC(C)CC(=O)OCC c1ccc2cc[nH]c2c1 c1ccc2occc2c1 c1ccc2sccc2c1
Fc1ccc(CN)cc1 Clc1ccc(CO)cc1 Clc1ccc(CN)cc1 Cc1ccc(C)c(O)c1 Nc1ccc(Cl)cc1C Oc1ccc(Cl)cc1C c1ccc(cc1)C(N)=O
NC(=O)c1ccncc1 OC(=O)c1ccccc1 OC(=O)c1ccncc1 CSc1ccc(N)cc1 CSc1ccc(O)cc1 COc1ccc(O)cc1 COc1ccc(N)cc1 CN(C)c1ccccc1
CNC(=O)CCCCO O=C1CCCCC1CN CC1CCC(O)CC1C C1CC2CCC1CC2O N#Cc1ccc(N)cc1 N#Cc1ccc(O)cc1 OCC(O)C(O)CCO NCC(N)CCCCO
"""
"""Forty molecules of nine heavy atoms."""

WINDOWS = (1, 5, 10, 50)
ARMS = {"unguided": (0.0, 0.0), "types": (0.0, 4.0), "coordinates": (4.0, 0.0), "joint": (4.0, 4.0)}


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates (M, 9, 3) in 2 angstrom, types (M, 9, K) and r (M,) of all conformers, in double precision."""
    from rdkit import Chem
    from rdkit.Chem import QED, AllChem
    from scipy.spatial.transform import Rotation

    positions, kinds, quality = [], [], []
    for smiles in SMILES.split():
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        AllChem.EmbedMultipleConfs(mol, CONFORMERS, randomSeed=SEED)
        mol = Chem.RemoveHs(mol)
        for conformer in mol.GetConformers():
            centred = conformer.GetPositions() - conformer.GetPositions().mean(0)
            turn = Rotation.random(rng=np.random.default_rng(len(positions))).as_matrix()
            positions.append(centred @ turn.T / 2)
            kinds.append([(a.GetAtomicNum(), a.GetIsAromatic()) for a in mol.GetAtoms()])
            quality.append(QED.qed(mol))
    known = sorted({kind for mol in kinds for kind in mol})
    index = torch.tensor([[known.index(kind) for kind in mol] for mol in kinds])
    r = torch.tensor(quality, dtype=torch.float64)
    r = 0.02 + 0.96 * (r - r.min()) / (r.max() - r.min())
    return torch.tensor(np.array(positions)), torch.nn.functional.one_hot(index).double(), r


class Exact:
    """The posterior of B chains of nine atoms each; beliefs are flat, (9 B, 3) and (9 B, K)."""

    def __init__(self, x: Tensor, e: Tensor, r: Tensor) -> None:
        self.x, self.e, self.r = x.flatten(1), e.flatten(1), r
        self.atoms = x.shape[1]

    def weights(self, mu: Tensor, log_theta: Tensor, t: float) -> Tensor:
        """Posterior probabilities of the conformers, (B, M)."""
        log = log_theta.view(-1, self.e.shape[1]) @ self.e.T
        if t > 0:
            rest = SIGMA1 ** (2 * t)
            gamma = 1 - rest
            mu = mu.view(-1, self.x.shape[1])
            # |mu - gamma x|^2 without the term that all conformers share.
            square = gamma**2 * self.x.square().sum(1) - 2 * gamma * mu @ self.x.T
            log = log - square / (2 * gamma * rest)
        return log.softmax(1)

    def network(self, belief: Belief, t: float) -> tuple[Tensor, Tensor]:
        w = self.weights(belief.mu, belief.y.log_softmax(-1), t)
        e = (w @ self.e).view(belief.y.shape)
        return (w @ self.x).view(belief.mu.shape), e.clamp_min(1e-300).log()

    def gradient(self, belief: Belief, t: float) -> tuple[Tensor, Tensor]:
        """That of log E[r | belief]; none at t = 0, where nothing is known."""
        if t == 0:
            return torch.zeros_like(belief.mu), torch.zeros_like(belief.y)
        return guidance.by_logits(lambda mu, theta: [self.weights(mu, theta.log(), t) @ self.r], belief)


def chain(exact: Exact, chains_: int, seed: int, window: int, scales: tuple[float, float]) -> Tensor:
    """The score r of each chain, (chains,)."""
    atoms, types = exact.atoms, exact.e.shape[1] // exact.atoms
    start = Belief(torch.zeros(chains_ * atoms, 3).double(), torch.zeros(chains_ * atoms, types).double())
    last: list[Belief] = []

    def network(belief: Belief, t: float) -> tuple[Tensor, Tensor]:
        last[:] = [belief]
        return exact.network(belief, t)

    generator = torch.Generator().manual_seed(seed)
    chains.sample(
        network, start, STEPS, SIGMA1, BETA1, generator, window, exact.gradient if any(scales) else None, scales
    )
    (belief,) = last
    best = exact.weights(belief.mu, belief.y.log_softmax(-1), 1.0).argmax(1)
    return exact.r[best]


def summary(scores: list[float]) -> dict[str, float]:
    """Mean and its standard error."""
    return {"mean": float(np.mean(scores)), "se": float(np.std(scores, ddof=1) / math.sqrt(len(scores)))}


def judged(table: dict[str, dict[str, float]], truth: dict[str, float]) -> dict[str, Any]:
    """The pass marks of the module's head, each with the difference in standard errors."""

    def apart(a: str, b: str) -> float:
        x, y = table[a], table[b]
        return (x["mean"] - y["mean"]) / math.hypot(x["se"], y["se"])

    found: dict[str, Any] = {}
    for k in (1, 10):
        found[f"joint - coordinates, k={k}, >= 2"] = apart(f"joint, k={k}", f"coordinates, k={k}")
    found["joint, k=10 - k=1, >= 3"] = apart("joint, k=10", "joint, k=1")
    for k in WINDOWS:
        one = table[f"unguided, k={k}"]
        found[f"|unguided - data|, k={k}, <= 2"] = abs(one["mean"] - truth["data"]) / one["se"]
    one = table["joint, s=1, k=1"]
    found["|joint, s=1 - exact|, k=1, <= 2"] = abs(one["mean"] - truth["tilted, s=1"]) / one["se"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=250, help="chains of a seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--quick", action="store_true", help="a few chains: does everything run? nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count, seeds = (4, [0]) if arguments.quick else (arguments.chains, arguments.seeds)
    exact = Exact(*data())
    r = exact.r
    truth = {"data": float(r.mean())} | {f"tilted, s={s}": float((r ** (s + 1)).sum() / (r**s).sum()) for s in (1, 4)}
    print(json.dumps(truth), flush=True)
    arms = {f"{name}, k={k}": (k, scales) for k in WINDOWS for name, scales in ARMS.items()}
    arms["joint, s=1, k=1"] = (1, (1.0, 1.0))
    table = {}
    began = time.process_time()
    for name, (k, scales) in arms.items():
        scores = [float(v) for seed in seeds for v in chain(exact, count, seed, k, scales)]
        table[name] = summary(scores)
        print(f"{name:24} {table[name]['mean']:.4f} +- {table[name]['se']:.4f}", flush=True)
    found = {
        "truth": truth, "arms": table, "marks": judged(table, truth), "chains": count * len(seeds), "seeds": seeds,
        "steps": STEPS, "cpu_seconds": round(time.process_time() - began, 1),
    }  # fmt: skip
    print(json.dumps(found["marks"], indent=1))
    if not arguments.quick:
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
