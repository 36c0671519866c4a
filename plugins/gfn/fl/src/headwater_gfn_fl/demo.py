"""``headwater demo gfn-fl``: local credit beside its baseline on a landscape that can be gone through exactly."""

import math
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import headwater
from headwater import RunError
from headwater.config import validate
from headwater.reporting import Figure, Panel, Table, Text, curves, write_page
from headwater.run import Run
from rich.console import Console
from rich.table import Table as Shown

from headwater_gfn_fl.config import FLConfig
from headwater_gfn_fl.trainer import FLTrainer

__all__ = ["demo"]

STEPS, EARLY = 1500, 500
MOLECULE_STEPS = 250
BATCH = 16
CONTESTANTS = {"FL-DB": "fl-db", "DB (baseline)": "db"}
LANDSCAPE = {"dimensions": 2, "side": 32, "reward": "waves"}
MOLECULES = {"reward": "qed", "beta": 30.0, "max_blocks": 4, "convolutions": 3}


@dataclass(frozen=True)
class Result:
    """One contestant's run and what its last validation found."""

    run: Run
    found: dict[str, float]
    trajectories_per_second: float


def demo(out: Path) -> None:
    """Train FL-DB and DB on a landscape (and FL-DB on molecules where RDKit is installed); write ``out/report.html``.

    Raises:
        RunError: ``out`` holds something else than an earlier demo, or cannot be written.
    """
    out = Path(out)
    _make_room(out)
    console = Console()
    console.print(
        f"Two GFlowNets learn to sample a 32 x 32 landscape with nine peaks, {STEPS} steps each:\n"
        "FL-DB, which sees the energy of every step, and detailed balance, which sees the reward at the end."
    )
    results = {name: _train(out / objective, objective) for name, objective in CONTESTANTS.items()}
    sections = [("What was learned", _landscape(results)), ("How fast", _curves(results))]
    sections.append(("Molecules", _molecules(out, console)))
    table = _table(results)
    sections.insert(0, ("Result", [table]))
    page = write_page(
        out / "report.html",
        title="GFlowNets with local credit",
        subtitle="Forward-looking detailed balance (Pan et al., ICML 2023) beside detailed balance",
        sections=sections,
        facts=[("headwater", headwater_version()), ("steps", str(STEPS)), ("seed", "0")],
        command="headwater demo gfn-fl",
    )
    shown = Shown(*[str(c) for c in table.columns])
    for row in table.rows:
        shown.add_row(*[v if isinstance(v, str) else f"{v:,.4g}" for v in row])
    console.print(shown)
    console.print(f"report: {page}", soft_wrap=True)


def headwater_version() -> str:
    """The version of the core."""
    from importlib.metadata import version

    return version("headwater")


def _make_room(out: Path) -> None:
    """Refuse a folder with other things in it; runs of an earlier demo are replaced."""
    known = {*CONTESTANTS.values(), *(f"molecules-{o}" for o in CONTESTANTS.values()), "report.html"}
    try:
        out.mkdir(parents=True, exist_ok=True)
        strange = sorted(p.name for p in out.iterdir() if p.name not in known and not p.name.startswith("."))
    except OSError as error:
        raise RunError(f"cannot write in {out}: {error.strerror}") from error
    if strange:
        raise RunError(f"{out} holds {strange[0]!r}, which is not of a demo; choose another --out")


def _run(path: Path, task: str, settings: dict[str, Any], steps: int, trainer: dict[str, Any], **fit: Any) -> Run:
    """Train into ``path`` on one CPU device; a demo that is interrupted ends here."""
    run = headwater.train(
        "gfn-fl", path, task=task, force=True,
        overrides={
            "task": settings,
            "trainer": {"batch_size": BATCH, "exploration": 0.1, **trainer},
            "fit": {"max_steps": steps, "accelerator": "cpu", **fit},
        },
    )  # fmt: skip
    if run.reason == "interrupted":
        raise KeyboardInterrupt
    return run


def _train(path: Path, objective: str) -> Result:
    start = time.perf_counter()
    often = {"validate_every": 50, "checkpoint_every": EARLY, "keep": STEPS // EARLY}
    run = _run(path, "hypergrid", LANDSCAPE, STEPS, {"objective": objective}, **often)
    seconds = time.perf_counter() - start
    return Result(run, _validations(run)[-1], STEPS * BATCH / seconds)


def _validations(run: Run) -> list[dict[str, float]]:
    lines = [line for line in run.metrics() if "valid/l1" in line]
    return [{k.removeprefix("valid/"): v for k, v in line.items()} for line in lines]


def _table(results: dict[str, Result]) -> Table:
    columns = ["method", "L1", "JSD", "modes", "log Z error", "trajectories/s"]
    rows = [
        [
            name,
            r.found["l1"],
            r.found["jsd"],
            int(r.found["modes"]),
            r.found["log_z_error"],
            r.trajectories_per_second,
        ]
        for name, r in results.items()
    ]
    return Table(
        f"After {STEPS} steps", columns, rows,
        caption="L1 and JSD compare the policy's exact distribution over all 1,024 cells with the exact target; "
        "there are nine modes.",
    )  # fmt: skip


def _landscape(results: dict[str, Result]) -> list[Panel]:
    """Target and learned densities early on and at the end."""
    environment = headwater.load(next(iter(results.values())).run, device="cpu").task
    panels: list[Panel] = []
    for step in (EARLY, STEPS):
        policies = {name: _policy(result.run, environment, step) for name, result in results.items()}
        first, *rest = environment.pictures(policies)
        panels.append(Figure(f"Probability of each cell after {step} steps", first.figure, caption=first.caption))
        if step == STEPS:
            panels += rest
    return panels


def _policy(run: Run, environment: Any, step: int) -> Any:
    config = validate(FLConfig, run.config()["trainer"], "trainer")
    policy = FLTrainer.build(config, environment, {})["policy"]
    policy.load_state_dict(run.load(step, "model")["modules"]["policy"])
    return policy


def _curves(results: dict[str, Result]) -> list[Panel]:
    found = {name: _validations(r.run) for name, r in results.items()}
    steps = {n: ([v["step"] for v in vs], [v["l1"] for v in vs]) for n, vs in found.items()}
    log_z = {n: ([v["step"] for v in vs], [abs(v["log_z_error"]) for v in vs]) for n, vs in found.items()}
    return [
        curves("Distance to the target", steps, x="step", y="exact L1", log_y=True),
        curves("Error of log Z", log_z, x="step", y="|log Z - exact|", log_y=True),
    ]


def _molecules(out: Path, console: Console) -> list[Panel]:
    """Both contestants on molecules built from fragments; a line that says why not where RDKit is missing."""
    if find_spec("rdkit") is None:
        text = "Molecules need RDKit: pip install 'headwater-gfn-fl[mol]'"
        console.print(text, markup=False)
        return [Text("No molecules", text)]
    console.print(f"The same two build drug-like molecules from up to four fragments, {MOLECULE_STEPS} steps each:")
    runs = {
        name: _run(
            out / f"molecules-{objective}", "fragments", MOLECULES, MOLECULE_STEPS,
            {"objective": objective, "hidden": [64], "learning_rate": 2e-3, "backward": "uniform"}, log_every=10,
        )
        for name, objective in CONTESTANTS.items()
    }  # fmt: skip
    lines = {name: [line for line in run.metrics() if "log_reward" in line] for name, run in runs.items()}
    beta = MOLECULES["beta"]
    qed = {n: ([v["step"] for v in vs], [math.exp(v["log_reward"] / beta) for v in vs]) for n, vs in lines.items()}
    model = headwater.load(next(iter(runs.values())), device="cpu")
    pictures = model.task.pictures({"FL-DB": model.modules["policy"]})
    learning = curves(
        "Drug-likeness of what is sampled", qed, x="step", y="QED (geometric mean)",
        caption=f"Sixteen molecules a step, a tenth of the actions at random; R = QED^{beta:.0f}.",
    )  # fmt: skip
    return [learning, *pictures]
