"""flow-tsgen's `refine`: Sella's steps from generated transition states against those from the middle of IDPP paths.

    python benchmarks/flowmatch/refine.py --run RUN [--reactions 40] [--max-atoms 10]

RUN was trained on other data (RDB7) and is applied to the embedded GFN2-xTB reactions, in the order of the file; those
whose reactant is also in a training part that lies beside the run (``task.path`` of its config) are told apart. Both
searches are Sella on GFN2-xTB, in Cartesian coordinates, to 0.01 eV/A or 200 steps; a search *connects* if the descents
from its saddle end in the graphs of reactant and product. Steps are compared where both converge, and where both also
connect: elsewhere a search may be short because it ended somewhere else. Stopped, the same command goes on. Writes
``benchmarks/results/flow-tsgen-refine.json``.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import headwater
import numpy as np
import torch
from headwater_flow_tsgen.evaluation import idpp_middle, rmsds
from headwater_flow_tsgen.tasks.formats import read_rdb7, write_xyz
from headwater_flow_tsgen.tasks.guess import Guess, read_guesses
from headwater_flow_tsgen.tasks.reactions import XtbReactions, XtbReactionsConfig

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from harness import machine  # noqa: E402


def bare(smiles: str) -> str:
    """The canonical SMILES of a molecule without atom map and written hydrogens."""
    from rdkit import Chem

    mol = Chem.MolFromSmiles(smiles)
    for atom in mol.GetAtoms():
        atom.SetAtomMapNum(0)
    return str(Chem.MolToSmiles(Chem.RemoveHs(mol)))


def known_reactants(model: Any) -> set[str]:
    """The reactants in the training part of the run's table; empty where it is no table with SMILES."""
    path = Path(str(model.run.config()["task"].get("path", "")))
    if path.suffix != ".npz" or not path.exists():
        return set()
    return {bare(r.group) for r in read_rdb7(path) if r.part == "train"}


def interval(values: np.ndarray) -> list[float]:
    """The 95 % bootstrap interval of a mean, over reactions."""
    rows = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    return [float(q) for q in np.quantile(values[rows].mean(1), [0.025, 0.975])]


def told(guesses: list[Guess]) -> dict[str, Any]:
    """Convergence, connection and steps of both searches."""
    info = [g.info for g in guesses]

    def flags(name: str) -> np.ndarray:
        return np.array([bool(i.get(name, False)) for i in info])

    ours, theirs = flags("converged"), flags("idpp_converged")
    right, other = flags("connects"), flags("idpp_connects")
    steps, idpp = (np.array([float(i[name]) for i in info]) for name in ("steps", "idpp_steps"))
    found: dict[str, Any] = {
        "reactions": len(info),
        "converged": {"generated": int(ours.sum()), "idpp": int(theirs.sum())},
        "connects": {"generated": int(right.sum()), "idpp": int(other.sum())},
    }
    for name, rows in (("both converge", ours & theirs), ("both connect", right & other)):
        saved = (idpp - steps)[rows]
        found[name] = {"reactions": int(rows.sum())}
        if len(saved):
            found[name] |= {
                "steps": float(steps[rows].mean()), "idpp_steps": float(idpp[rows].mean()),
                "saved": float(saved.mean()), "saved_median": float(np.median(saved)),
                "saved_95": interval(saved), "share_saved": float((saved > 0).mean()),
            }  # fmt: skip
    refs = [np.asarray(g.reaction.ts) for g in guesses]
    found["rmsd_idpp"] = float(
        rmsds(list(zip([idpp_middle(g.reaction, 9) for g in guesses], refs, strict=True))).mean()
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--reactions", type=int, default=1000, help="how many, at most")
    parser.add_argument("--max-atoms", type=int, default=None, help="leave larger reactions out")
    parser.add_argument("--solver", default="midpoint")
    parser.add_argument("--steps", type=int, default=5, help="steps of the flow's solver")
    parser.add_argument("--work", type=Path, default=HERE.parents[1] / "build" / "benchmarks" / "refine")
    parser.add_argument("--name", default="flow-tsgen-refine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = headwater.load(options.run, device="cpu")
    reactions = XtbReactions(XtbReactionsConfig()).reactions()
    most = options.max_atoms or max(map(len, reactions))
    reactions = [r for r in reactions if len(r) <= most][: options.reactions]
    options.work.mkdir(parents=True, exist_ok=True)
    source, out = options.work / f"{options.name}-in.xyz", options.work / f"{options.name}-out.xyz"
    write_xyz(reactions, source)
    made = not out.exists()
    if made:
        settings = {"operation": {"solver": options.solver, "steps": options.steps}}
        model.apply("refine", source, out, overrides=settings)
    guesses = read_guesses(out)
    seen = known_reactants(model)
    new = [g for g in guesses if bare(g.reaction.group) not in seen]
    results = {
        "run": {"trainer": model.run.config()["trainer"], "step": model.step if made else "that of an earlier call"},
        "solver": [options.solver, options.steps],
        "all": told(guesses),
        "reactant not trained on": told(new) if new else None,
        "machine": machine(),
        "each": [{"name": g.reaction.name, "atoms": len(g.reaction), **g.info} for g in guesses],
    }
    path = HERE.parent / "results" / f"{options.name}.json"
    path.write_text(json.dumps(results, indent=1, default=np.generic.item) + "\n", encoding="utf-8")
    print(json.dumps({k: results[k] for k in ("all", "reactant not trained on")}, indent=1))


if __name__ == "__main__":
    main()
