"""flow-tsgen beside the plain published networks: the training step and the sampling of many reactions.

    python benchmarks/flowmatch/tsgen_speed.py [--quick] [--repeats 5]

Both run in one process on one thread, in turn, with the same weights, data and noise; first it is checked that both
give the same velocities, loss and samples to 1e-5 of their size. CPU seconds, medians. A result goes to
``benchmarks/results``.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from headwater_flow.paths import AffinePath
from headwater_flow_tsgen.batch import Frames
from headwater_flow_tsgen.convert import from_official
from headwater_flow_tsgen.flow import generate
from headwater_flow_tsgen.objective import flow_loss, variance_loss
from torch import Tensor
from torch.nn.functional import one_hot

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from harness import write_results  # noqa: E402
from plain_tsgen import PlainMolGen, PlainTSGen  # noqa: E402

NOISES = {"molgen": 1, "tsgen": 5}


def reactions(b: int, n: int) -> Frames:
    """Made-up reactions: points about 1.5 A apart in the reactant, moved a little in the others."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.cartesian_prod(*[torch.arange(3.0)] * 3)[torch.randperm(27, generator=generator)[:n]]
    reactant = 1.4 * corners + 0.2 * torch.randn(b, n, 3, generator=generator)
    reactant = reactant - reactant.mean(1, keepdim=True)
    ts, product = (reactant + s * torch.randn(b, n, 3, generator=generator) for s in (0.3, 0.5))
    species = torch.randint(0, 4, (b, n), generator=generator)
    return Frames(species, reactant, product, ts, torch.zeros_like(ts), None, None, torch.zeros(b))


class Pair:
    """Both contestants with the same weights, on the same reactions."""

    def __init__(self, name: str, b: int, n: int) -> None:
        torch.manual_seed(0)
        self.name = name
        self.plain = PlainMolGen() if name == "molgen" else PlainTSGen()
        with torch.no_grad():
            self.plain.decoder.Ov.mul_(0.05)
        self.ours = from_official(self.plain.state_dict())["network"]
        self.frames = reactions(b, n)
        generator = torch.Generator().manual_seed(1)
        self.t = torch.rand(b, generator=generator)
        self.noises = torch.randn(NOISES[name], b, n, 3, generator=generator)
        self.onehot = one_hot(self.frames.species, 5).float()[:, None].expand(-1, 3, -1, -1)
        self.optimisers = [torch.optim.AdamW(net.parameters(), 1e-4) for net in (self.plain, self.ours)]

    def whole(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        return torch.stack([self.frames.reactant[rows], x, self.frames.product[rows]], 1)

    def plain_velocity(self, x: Tensor, t: Tensor, rows: slice = slice(None)) -> Tensor:
        return self.plain(self.whole(x, rows), t, self.onehot[rows])[:, 1]

    def loss(self, velocities: Tensor, u: Tensor) -> Tensor:
        if self.name == "molgen":
            return flow_loss(velocities[0], u, self.t, "l1").mean()
        return (flow_loss(velocities[0], u, self.t, "l2") + variance_loss(velocities)).mean()

    def plain_loss(self) -> Tensor:
        path, x1 = AffinePath(), self.frames.ts
        found = [self.plain_velocity(path.mean(self.t, z, x1), self.t) for z in self.noises]
        return self.loss(torch.stack(found), x1 - self.noises[0])

    def our_loss(self) -> Tensor:
        f, s = self.frames, len(self.noises)
        context = self.ours.prepare(f.species, f.reactant, f.product)
        x1 = f.ts.repeat(s, 1, 1)
        t = self.t.repeat(s)
        if s > 1:
            context = context.rows(torch.arange(len(self.t)).repeat(s))
        v = self.ours(AffinePath().mean(t, self.noises.flatten(0, 1), x1), t, context)
        return self.loss(v.view(self.noises.shape), f.ts - self.noises[0])

    def step(self, which: int) -> None:
        loss = self.plain_loss() if which == 0 else self.our_loss()
        loss.backward()
        net = (self.plain, self.ours)[which]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        self.optimisers[which].step()
        self.optimisers[which].zero_grad()

    @torch.no_grad()
    def plain_samples(self, count: int, batch: int, steps: int) -> Tensor:
        out = []
        for start in range(0, count, batch):
            rows = slice(start, start + batch)
            x = self.noises[0, rows]
            for k in range(steps):
                x = x + self.plain_velocity(x, torch.full((len(x),), k / steps), rows) / steps
            out.append(x)
        return torch.cat(out)

    @torch.no_grad()
    def our_samples(self, count: int, batch: int, steps: int) -> Tensor:
        out = []
        for start in range(0, count, batch):
            rows = torch.arange(start, min(start + batch, count))
            out.append(generate(self.ours, self.frames.rows(rows), self.noises[0, rows], method="euler", steps=steps))
        return torch.cat(out)

    @torch.no_grad()
    def check(self) -> float:
        """The largest difference of velocities, loss and samples, relative to their size."""
        f = self.frames
        x = AffinePath().mean(self.t, self.noises[0], f.ts)
        v = self.plain_velocity(x, self.t)
        ours = self.ours(x, self.t, self.ours.prepare(f.species, f.reactant, f.product))
        a, b = self.plain_loss(), self.our_loss()
        p, q = self.plain_samples(2, 2, 4), self.our_samples(2, 2, 4)
        return max(
            float((v - ours).abs().max() / v.abs().max()),
            float((a - b).abs() / a.abs().clamp(min=1.0)),
            float((p - q).abs().max() / p.abs().max()),
        )


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def compare(label: str, plain: Callable[[], object], ours: Callable[[], object], repeats: int) -> dict[str, object]:
    plain(), ours()
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        for which in (0, 1) if repeat % 2 == 0 else (1, 0):
            seconds[which].append(cpu_seconds((plain, ours)[which]))
    medians = [statistics.median(s) for s in seconds]
    ratio = medians[0] / medians[1]
    print(f"{label}: plain {medians[0]:.3f} CPU s, ours {medians[1]:.3f}, {ratio:.1f} times", flush=True)
    return {"workload": label, "plain": seconds[0], "ours": seconds[1], "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does everything run? nothing is written")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--networks", default="molgen,tsgen")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    repeats = 1 if arguments.quick else arguments.repeats
    measured, differences = [], {}
    for name in arguments.networks.split(","):
        differences[name] = Pair(name, 4, 16).check()
        print(f"{name}: largest relative difference {differences[name]:.1e}")
        if differences[name] > 1e-5:
            raise SystemExit("the two contestants do not compute the same")
        pair = Pair(name, 4 if arguments.quick else 32, 16)
        label = f"{name}, training step, N = 16, B = {len(pair.t)}"
        measured.append(compare(label, partial(pair.step, 0), partial(pair.step, 1), repeats))
        count, few, steps = (8, 2, 2) if arguments.quick else (256, 4, 20)
        pair = Pair(name, count, 16)
        # The plain one does one reaction at a time, as published; a part of them is measured and scaled up.
        ours = partial(pair.our_samples, few, few, steps)
        for batch in (1, few):
            label = f"{name}, {few} of {count} reactions, {steps} Euler steps, plain in batches of {batch}"
            measured.append(compare(label, partial(pair.plain_samples, few, batch, steps), ours, repeats))
        all_of_ours = partial(pair.our_samples, count, 32, steps)
        whole = statistics.median([cpu_seconds(all_of_ours) for _ in range(repeats)])
        plain = statistics.median(measured[-2]["plain"]) * count / few
        batched = statistics.median(measured[-1]["plain"]) * count / few
        label = f"{name}, sampling of {count} reactions, {steps} Euler steps"
        print(f"{label}: plain {plain:.1f} CPU s (batched {batched:.1f}), ours {whole:.1f}, {plain / whole:.1f} times")
        measured.append(
            {"workload": label, "plain_scaled": plain, "plain_batched_scaled": batched, "ours": whole,
             "ratio": plain / whole, "ratio_batched": batched / whole}
        )  # fmt: skip
    if not arguments.quick:
        print(write_results("flow-tsgen-speed", measured, differences=differences, torch=torch.__version__))


if __name__ == "__main__":
    main()
