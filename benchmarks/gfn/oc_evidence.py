"""What pre-training buys: outcomes reached, rewards converted to without training, reward evaluations saved.

    python benchmarks/gfn/oc_evidence.py [--tfbind8 tfbind8_escore.npz --modes tfbind8_six6_modes.txt] [--seeds 5]

- exact: the conversion of the exact flows on the grid, and on TFBind8 for every factor: largest L1 to r / sum r.
- reach: pre-training on the grid: exact success rate; L1 of the policies converted to three rewards without training.
- scratch: DB and TB on each of these rewards from scratch, with the same network and a third of pre-training's updates
  (compute-matched: pre-training is shared by the three).
- grid: different objects evaluated, and objects sampled, until all modes of the grid are found, by fine-tuning, TB, DB,
  DQN and MCMC.
- tfbind8: the same for the modes of SIX6, and at a half and nine tenths of them.
- factors: on the 29 last factors, after pre-training once on strings: Spearman correlation of log P_T and log r, and
  how many of the best 0.5 % are among 20,000 samples, of the conversion and of DB from scratch with as many updates as
  pre-training had; how often each wins.
- ablation: the paper's mode with and without contrast and teleportation, and direct, on strings of 24 bits: success.

Every finished piece is written at once to ``results/gfn-oc-evidence.json``, and what is there is not made again: stop
and start as you like. Pre-trained runs are kept in ``--work``. ``--parts reach,grid`` chooses. The figure of the
plugin's README is drawn at the end.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import headwater
import numpy as np
import torch
from headwater.api import task_of
from headwater.run import Run
from headwater_gfn.archive import Archive
from headwater_gfn.exact import forward_policy, l1_distance, learned_distribution, log_target
from headwater_gfn.table import TableEnvironment
from headwater_gfn_oc.conversion import convert, exact_weights, learned_weights, ways_of
from headwater_gfn_oc.metropolis import metropolis

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import HERE, ROOT, about

SHAPES = ("corners", "ring", "checkerboard")
PARTS = ("exact", "reach", "scratch", "grid", "tfbind8", "factors", "ablation")
HELD_OUT = 29
FLOOR = 1e-3
COMMON = {"accelerator": "cpu", "threads": 1, "keep": 1, "log_every": 1000, "checkpoint_every": 10**6}
ABLATION = {
    "CT and OT": {"mode": "paper"},
    "without OT": {"mode": "paper", "teleport": False},
    "without CT": {"mode": "paper", "contrastive": False},
    "without CT and OT": {"mode": "paper", "contrastive": False, "teleport": False},
    "direct": {},
    "direct without imitation": {"imitation": 0.0},
}


class Bench:
    """The options, what is finished, and the pre-trained runs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.done = options, {}
        if options.out.exists() and not options.fresh:
            pieces = json.loads(options.out.read_text())["pieces"]
            self.done = {(p["part"], p["name"], p["seed"]): p for p in pieces}

    def keep(self, part: str, name: str, seed: int, make: Callable[[], dict[str, Any]]) -> None:
        """Make one piece, unless it is there, and write it."""
        if (part, name, seed) in self.done:
            return
        began, cpu = time.perf_counter(), time.process_time()
        found = make()
        seconds = {"seconds": round(time.perf_counter() - began, 1), "cpu": round(time.process_time() - cpu, 1)}
        self.done[part, name, seed] = {"part": part, "name": name, "seed": seed, **seconds, **found}
        out = self.options.out
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_suffix(".part")
        text = json.dumps({**about(), "pieces": list(self.done.values())})
        beside.write_text(text + "\n")
        beside.replace(out)
        shown = {k: v for k, v in found.items() if not isinstance(v, list | dict)}
        print(f"{seconds['cpu']:6.0f} CPU s  {part} {name} seed {seed}: {shown}", flush=True)

    def run(self, name: str, **given: Any) -> Any:
        """A finished run, kept in the folder of work."""
        path = self.options.work / name
        if path.exists():
            found = Run(path)
            if found.checkpoints() and found.checkpoints()[-1] == found.config()["fit"]["max_steps"]:
                return found
        run = headwater.train("gfn-oc", path, force=True, **given)
        if run.reason != "done":
            raise SystemExit(f"{name} was {run.reason}; what is finished is kept")
        return run

    def on_grid(self, seed: int) -> Any:
        o = self.options
        fit = {**COMMON, "seed": seed, "max_steps": o.steps, "validate_every": max(1, o.steps // 6)}
        trainer = {"decay_steps": o.steps, "batch_size": 64}
        return self.run(
            f"grid-{o.side}-{o.steps}-{seed}", overrides={"task": {"side": o.side}, "trainer": trainer, "fit": fit}
        )

    def on_strings(self, seed: int) -> Any:
        o = self.options
        fit = {**COMMON, "seed": seed, "max_steps": o.string_steps, "validate_every": max(1, o.string_steps // 5)}
        trainer = {"decay_steps": o.string_steps, "batch_size": 64}
        return self.run(
            f"strings-{o.string_steps}-{seed}", task="strings",
            overrides={"task": {"alphabet": "ACGT", "length": 8}, "trainer": trainer, "fit": fit},
        )  # fmt: skip


def grid_name(bench: Bench) -> str:
    return f"{bench.options.side} x {bench.options.side}, {bench.options.steps:,} updates"


def grid_task(side: int, reward: str) -> dict[str, Any]:
    return {"side": side, "reward": reward, "floor": FLOOR if reward == "standard" else None}


def table_of(name: str, task: dict[str, Any]) -> TableEnvironment:
    return TableEnvironment(task_of(name, {"task": task}))


# The parts


def exact(bench: Bench, seed: int) -> None:
    if seed:
        return

    def grid() -> dict[str, Any]:
        found = {}
        for reward in (*SHAPES, "standard"):
            table = table_of("hypergrid", grid_task(16, reward))
            ways = ways_of(table)
            assert ways is not None
            p = learned_distribution(table, convert(ways, exact_weights(ways), table.log_rewards))
            found[reward] = l1_distance(p, log_target(table).exp())
        return {"l1": max(found.values()), "each": found}

    def factors() -> dict[str, Any]:
        task = task_of("tfbind8", {"task": {"table": str(bench.options.tfbind8)}})
        table = TableEnvironment(task)
        ways = ways_of(table)
        assert ways is not None
        weights = exact_weights(ways)
        scores = task.raw_objectives(table.states[table.n_inner :])
        found = {}
        for name, score in zip(task.names, scores.T, strict=True):
            log_r = reward_of(score)
            p = learned_distribution(table, convert(ways, weights, log_r))
            found[name] = l1_distance(p, torch.softmax(log_r, 0))
        return {"l1": max(found.values()), "each": found}

    bench.keep("exact", "grid 16 x 16", 0, grid)
    if bench.options.tfbind8:
        bench.keep("exact", "TFBind8, 41 factors", 0, factors)


def reward_of(score: torch.Tensor) -> torch.Tensor:
    """log r of scores between 0 and 1: their cube, at least 0.001."""
    return (3 * score.double().clamp_min(1e-12).log()).clamp_min(math.log(FLOOR))


def reach(bench: Bench, seed: int) -> None:
    def make() -> dict[str, Any]:
        run = bench.on_grid(seed)
        lines = [line for line in run.metrics() if "valid/success" in line]
        policy: Any = headwater.load(run, device="cpu").modules["conditional"]
        l1 = {}
        for reward in SHAPES:
            table = table_of("hypergrid", grid_task(bench.options.side, reward))
            ways = ways_of(table)
            assert ways is not None
            weights = learned_weights(ways, policy, normalised=True)
            p = learned_distribution(table, convert(ways, weights, table.log_rewards))
            l1[reward] = l1_distance(p, log_target(table).exp())
        lines = [{"step": x["step"], "success": x["valid/success"], "seconds": x["seconds"]} for x in lines]
        return {"success": lines[-1]["success"], "l1": l1, "lines": lines}

    bench.keep("reach", grid_name(bench), seed, make)


def scratch(bench: Bench, seed: int) -> None:
    o = bench.options
    steps = o.steps // len(SHAPES)
    for objective in ("db", "tb"):
        for reward in SHAPES:

            def make(objective: str = objective, reward: str = reward) -> dict[str, Any]:
                trainer = {"objective": objective, "batch_size": 64, "decay_steps": steps, "replay": "none"}
                run = passing(
                    bench, stage="baseline",
                    overrides={
                        "task": grid_task(o.side, reward), "trainer": trainer,
                        "fit": {**COMMON, "seed": seed, "max_steps": steps},
                    },
                )  # fmt: skip
                return {"l1": run.metrics()[-1]["valid/l1"]}

            bench.keep("scratch", f"{objective} {reward}, {grid_name(bench)}", seed, make)


def passing(bench: Bench, **given: Any) -> Any:
    """A run that nobody needs once its numbers are taken: the next takes its place."""
    run = headwater.train("gfn-oc", bench.options.work / "passing", force=True, **given)
    if run.reason != "done":
        raise SystemExit(f"a run was {run.reason}; what is finished is kept")
    return run


def found_along(run: Any, batch: int) -> list[list[float]]:
    """Different objects evaluated so far, modes found, and objects sampled, at each validation."""
    lines = [x for x in run.metrics() if "valid/modes" in x]
    return [[x["valid/different"], x["valid/modes"], x["step"] * batch] for x in lines]


def needed(along: list[list[float]], modes: float, *, sampled: bool = False) -> float | None:
    """Different objects (or objects sampled) at which so many modes were found; ``None`` where they never were."""
    return next((line[2 if sampled else 0] for line in along if line[1] >= modes), None)


def when(along: list[list[float]], modes: int) -> dict[str, float | None]:
    """Different objects and objects sampled at which all modes were found."""
    return {"evaluations": needed(along, modes), "sampled": needed(along, modes, sampled=True)}


def searching(bench: Bench, part: str, seed: int, task: str, settings: dict[str, Any], plan: dict[str, Any]) -> None:
    """Fine-tuning and the baselines on one reward: evaluations and modes along the way."""
    trainer = plan["trainer"]
    fit = {**COMMON, "seed": seed, "max_steps": plan["rounds"], "validate_every": plan["every"]}
    methods: dict[str, dict[str, Any]] = {
        "OC-GFN": {"stage": "finetune", "own": plan["finetune"]},
        "TB": {"stage": "baseline", "own": {"objective": "tb"}},
        "DB": {"stage": "baseline", "own": {"objective": "db"}},
        "DQN": {"stage": "baseline", "own": {"objective": "dqn", "temperature": 0.05}},
    }
    for name, method in methods.items():

        def make(method: dict[str, Any] = method) -> dict[str, Any]:
            tuned = method["stage"] == "finetune"
            run = passing(
                bench, stage=method["stage"], task=task, from_runs=[plan["pretrained"](seed).path] if tuned else [],
                overrides={"task": settings, "trainer": {**trainer, **method["own"]}, "fit": fit},
            )  # fmt: skip
            along = found_along(run, trainer["batch_size"])
            last = {k.removeprefix("valid/"): v for k, v in run.metrics()[-1].items()}
            return {**when(along, plan["modes"]), "along": along, "last": last}

        bench.keep(part, name + plan["label"], seed, make)

    def chains() -> dict[str, Any]:
        table = table_of(task, settings)
        archive = Archive(1000, table.n_modes, table.modes)
        generator = torch.Generator().manual_seed(seed)
        along: list[list[float]] = []
        x = table.random_objects(16, generator)
        exponent = trainer.get("exponent", 1.0)

        def visit(y: torch.Tensor, log_reward: torch.Tensor) -> None:
            archive.add(y, log_reward, table.key(y))

        proposals = plan["rounds"] * trainer["batch_size"] // 16
        for i in range(50):
            x, _ = metropolis(table, x, max(1, proposals // 50), exponent, generator, visit)
            along.append([archive.different, archive.modes, (i + 1) * max(1, proposals // 50) * len(x)])
        return {**when(along, plan["modes"]), "along": along}

    bench.keep(part, "MCMC" + plan["label"], seed, chains)


def grid(bench: Bench, seed: int) -> None:
    o = bench.options
    searching(bench, "grid", seed, "hypergrid", grid_task(o.side, "standard"), {
        "trainer": {"batch_size": 16, "replay_batch": 16, "hidden": [256, 256], "exploration": 0.05},
        "finetune": {"aimed": 0.5}, "rounds": o.grid_rounds, "every": 4, "modes": 4, "pretrained": bench.on_grid,
        "label": f", {o.side} x {o.side}",
    })  # fmt: skip


def tfbind8(bench: Bench, seed: int) -> None:
    o = bench.options
    if not o.tfbind8 or not o.modes:
        return
    settings = {"table": str(o.tfbind8), "reward": "SIX6_REF_R1", "mode_list": str(o.modes), "floor": 0.1}
    searching(bench, "tfbind8", seed, "tfbind8", settings, {
        "trainer": {
            "batch_size": 32, "replay_batch": 32, "hidden": [128, 128], "exploration": 0.02, "exponent": 3.0,
            "updates_per_batch": 4, "replay_size": 100_000,
        },
        "finetune": {"aimed": 0.1, "outcome_hidden": [256, 256]}, "rounds": o.string_rounds, "every": 50, "modes": 328,
        "pretrained": bench.on_strings, "label": "",
    })  # fmt: skip


def factors(bench: Bench, seed: int) -> None:
    from scipy.stats import spearmanr

    o = bench.options
    if not o.tfbind8:
        return
    with np.load(o.tfbind8, allow_pickle=False) as file:
        names = [str(name) for name in file["tf"]][-HELD_OUT:]

    def scores(table: TableEnvironment, p: torch.Tensor, log_r: torch.Tensor) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(p, 20_000, replacement=True, generator=generator)
        best = log_r.topk(round(0.005 * len(log_r))).indices
        return {
            "spearman": float(spearmanr(p.clamp_min(1e-300).log(), log_r).statistic),
            "modes": float(torch.isin(best, drawn).sum()),
            "l1": l1_distance(p, torch.softmax(log_r, 0)),
        }

    def conversion() -> dict[str, Any]:
        task = task_of("tfbind8", {"task": {"table": str(o.tfbind8), "columns": names}})
        table = TableEnvironment(task)
        ways = ways_of(table)
        assert ways is not None
        policy: Any = headwater.load(bench.on_strings(seed), device="cpu").modules["conditional"]
        weights = learned_weights(ways, policy, normalised=True)
        values = task.raw_objectives(table.states[table.n_inner :])
        each = {}
        for name, score in zip(names, values.T, strict=True):
            log_r = reward_of(score)
            each[name] = scores(table, learned_distribution(table, convert(ways, weights, log_r)), log_r)
        return {"each": each, "spearman": mean(v["spearman"] for v in each.values())}

    bench.keep("factors", "conversion", seed, conversion)
    for name in names:

        def baseline(name: str = name) -> dict[str, Any]:
            run = passing(
                bench, stage="baseline", task="tfbind8", overrides={
                    "task": {"table": str(o.tfbind8), "reward": name, "floor": 0.1},
                    "trainer": {
                        "objective": "db", "exponent": 3.0, "batch_size": 64, "replay": "none",
                        "decay_steps": o.string_steps,
                    },
                    "fit": {**COMMON, "seed": seed, "max_steps": o.string_steps},
                },
            )  # fmt: skip
            model = headwater.load(run, device="cpu")
            policy: Any = model.modules["policy"]
            table = TableEnvironment(model.task)
            p = learned_distribution(table, forward_policy(table, policy))
            return scores(table, p, 3.0 * table.log_rewards.double())

        bench.keep("factors", f"DB {name}", seed, baseline)


def ablation(bench: Bench, seed: int) -> None:
    o = bench.options
    for name, trainer in ABLATION.items():

        def make(trainer: dict[str, Any] = trainer) -> dict[str, Any]:
            run = passing(
                bench, task="bits", overrides={
                    "task": {"bits": 24, "word": 2, "any_order": False},
                    "trainer": {**trainer, "batch_size": 16, "decay_steps": None},
                    "fit": {
                        **COMMON, "seed": seed, "max_steps": o.ablation_steps,
                        "validate_every": max(1, o.ablation_steps // 10),
                    },
                },
            )  # fmt: skip
            lines = [[x["step"], x["valid/success"]] for x in run.metrics() if "valid/success" in x]
            return {"success": lines[-1][1], "lines": lines}

        bench.keep("ablation", name, seed, make)


# Tables and the figure


def of(bench: Bench, part: str, name: str, key: Callable[[dict[str, Any]], Any]) -> list[float]:
    chosen = [p for (a, b, _), p in bench.done.items() if (a, b) == (part, name)]
    return [v for v in map(key, chosen) if v is not None]


def told(values: list[float]) -> str:
    return (
        f"{mean(values):.4g} ({min(values):.4g} to {max(values):.4g}), {len(values)} seeds" if values else "not found"
    )


def names_of(bench: Bench, part: str) -> list[str]:
    return list(dict.fromkeys(b for a, b, _ in bench.done if a == part))


def tables(bench: Bench) -> Iterator[str]:
    for name in names_of(bench, "exact"):
        yield f"exact, {name}: largest L1 {max(of(bench, 'exact', name, lambda p: p['l1'])):.1e}"
    for grid in names_of(bench, "reach"):
        yield f"{grid}: success {told(of(bench, 'reach', grid, lambda p: p['success']))}"
        for reward in SHAPES:
            yield f"{grid}: L1 on {reward}, converted {told(of(bench, 'reach', grid, lambda p, r=reward: p['l1'][r]))}"
            for objective in ("db", "tb"):
                found = of(bench, "scratch", f"{objective} {reward}, {grid}", lambda p: p["l1"])
                yield f"{grid}: L1 on {reward}, {objective} from scratch {told(found)}"
    for part, shares in (("grid", (4,)), ("tfbind8", (164, 295, 328))):
        for name in names_of(bench, part):
            for modes in shares:
                found = of(bench, part, name, lambda p, m=modes: needed(p["along"], m))
                samples = of(bench, part, name, lambda p, m=modes: needed(p["along"], m, sampled=True))
                yield f"{part}, {name}, {modes} modes: different objects {told(found)}; samples {told(samples)}"
            most = of(bench, part, name, lambda p: p["along"][-1][1])
            yield f"{part}, {name}: modes at the end: {told(most)}"
    wins = {"spearman": 0, "modes": 0}
    compared = 0
    for (part, name, seed), piece in bench.done.items():
        if part == "factors" and name.startswith("DB ") and ("factors", "conversion", seed) in bench.done:
            own = bench.done["factors", "conversion", seed]["each"][name.removeprefix("DB ")]
            compared += 1
            for key in wins:
                wins[key] += own[key] > piece[key]
    conversion = of(bench, "factors", "conversion", lambda p: p["spearman"])
    yield f"factors: mean Spearman, converted: {told(conversion)}; wins against DB from scratch of {compared}: {wins}"
    for name in names_of(bench, "ablation"):
        yield f"ablation, {name}: success {told(of(bench, 'ablation', name, lambda p: p['success']))}"


def figure(bench: Bench, path: Path) -> None:
    """Success through pre-training; L1 per reward; modes by reward evaluations; the ablation."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams["svg.hashsalt"] = "gfn-oc"
    parts = [part for part in ("reach", "scratch", "grid", "tfbind8", "ablation") if names_of(bench, part)]
    if not parts:
        return
    fig, axes = plt.subplots(1, len(parts), figsize=(3.4 * len(parts), 3.2), constrained_layout=True, squeeze=False)
    for axis, part in zip(axes[0], parts, strict=True):
        grids = names_of(bench, "reach")
        if part == "reach":
            for (a, name, _), p in bench.done.items():
                if a == "reach":
                    colour = f"C{grids.index(name)}"
                    axis.plot([x["step"] for x in p["lines"]], [x["success"] for x in p["lines"]], colour, linewidth=1)
            for i, name in enumerate(grids):
                axis.plot([], [], f"C{i}", label=name)
            axis.axhline(0.95, color="0.6", linewidth=0.8)
            axis.set_title("success", fontsize=9, loc="left")
            axis.set_xlabel("update")
            axis.legend(frameon=False, fontsize=7)
        elif part == "scratch":
            first = grids[0]
            for i, reward in enumerate(SHAPES):
                groups = [of(bench, "reach", first, lambda p, r=reward: p["l1"][r])]
                groups += [of(bench, "scratch", f"{o} {reward}, {first}", lambda p: p["l1"]) for o in ("db", "tb")]
                for j, (values, label) in enumerate(zip(groups, ("converted", "DB", "TB"), strict=True)):
                    place = [i + 0.2 * (j - 1)] * len(values)
                    axis.plot(place, values, f"C{j}o", markersize=4, label=None if i else label)
            axis.set_xticks(range(len(SHAPES)), SHAPES)
            axis.set_yscale("log")
            axis.set_title(f"L1 to the target, {first.split(',')[0]}", fontsize=9, loc="left")
            axis.legend(frameon=False, fontsize=7)
        else:
            for i, name in enumerate(names_of(bench, part)):
                seeds = [p for (a, b, _), p in bench.done.items() if (a, b) == (part, name)]
                for k, p in enumerate(seeds):
                    points = p["lines"] if part == "ablation" else [(line[2], line[1]) for line in p["along"]]
                    xs, ys = zip(*points, strict=True)
                    axis.plot(xs, ys, f"C{i}", linewidth=1, alpha=0.8, label=None if k else name)
            axis.set_xlabel("update" if part == "ablation" else "objects sampled")
            titles = {"grid": "modes of the grid", "tfbind8": "modes of SIX6", "ablation": "success, 24 bits"}
            axis.set_title(titles[part], fontsize=9, loc="left")
            axis.legend(frameon=False, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tfbind8", type=Path, help="NPZ with the E-scores of all factors (escore_1e5, tf)")
    parser.add_argument("--modes", type=Path, help="text file with the 328 modes of SIX6, one a line")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, with commas between")
    parser.add_argument("--side", type=int, default=16, help="of the grid")
    parser.add_argument("--steps", type=int, default=3000, help="updates of pre-training on the grid")
    parser.add_argument("--grid-rounds", type=int, default=1000, help="rounds of 16 trajectories on the grid")
    parser.add_argument("--string-steps", type=int, default=20_000, help="updates of pre-training on strings")
    parser.add_argument("--string-rounds", type=int, default=2000, help="rounds of 32 trajectories on TFBind8")
    parser.add_argument("--ablation-steps", type=int, default=5000)
    parser.add_argument("--fresh", action="store_true", help="do not keep what was measured before")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "oc", help="where pre-trained runs are kept")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gfn-oc-evidence.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "plugins/gfn/oc/docs/figures/gfn-oc-evidence.svg")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    chosen = options.parts.split(",")
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        raise SystemExit(f"there is no part {unknown[0]}; the parts are {', '.join(PARTS)}")
    makers = {
        "exact": exact, "reach": reach, "scratch": scratch, "grid": grid, "tfbind8": tfbind8, "factors": factors,
        "ablation": ablation,
    }  # fmt: skip
    for seed in range(options.seeds):
        for part in chosen:
            makers[part](bench, seed)
    print("\n".join(tables(bench)))
    figure(bench, options.figure)


if __name__ == "__main__":
    main()
