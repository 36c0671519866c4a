"""The latent flow of vision-lzn beside its difference form: forward, reverse, and a step of two-view training.

    python benchmarks/vision/lzn_speed.py [--repeats 5] [--batch 256] [--latent 256] [--steps 20] [--quick]

B = N = 256 images, D = 256, 20 Euler steps each way, float32, one thread; both forms in one process in turn, medians of
CPU seconds. *plain* (``plain_lzn.py``) is our own plain writing of the difference form; its training step computes
each evaluation again in the backward pass, as the published code does. Results of both are compared in float64 first,
to 1e-8, with the gradient to 1e-6 relative. A training step is forward, reverse, loss and backward of the flow,
without an encoder. *limit* is the time that the matrix products alone need, 4 B N D floating-point operations an
evaluation forward and 10 backward, at the rate at which this core multiplies matrices of that size. Memory is the
largest amount allocated at once, counted by the allocator in a run of its own; that of the plain form in two steps,
for more need no more.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from headwater_vision_lzn.flow import forward_flow, reverse_flow
from headwater_vision_lzn.objective import alignment_losses
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
import plain_lzn

CUT_OFF = 0.2


def ours(a: Tensor, b: Tensor, prior: Tensor, steps: int) -> Tensor:
    """The loss of two views, in attention form."""
    latents = forward_flow(a, a, prior, solver="euler", steps=steps)
    back = reverse_flow(latents, b, solver="euler", steps=steps, targets=torch.arange(len(a)))
    assert back.log_targets is not None
    return alignment_losses(back.log_targets, CUT_OFF)[0]


def plain(a: Tensor, b: Tensor, prior: Tensor, steps: int) -> Tensor:
    """The loss of two views, by differences."""
    latents = plain_lzn.forward_flow(a, prior, steps, recompute=True)
    every = plain_lzn.reverse_flow(latents, b, steps, recompute=True)[1]
    own = every.diagonal(dim1=1, dim2=2)[int(CUT_OFF * steps + 1e-9) :]
    return -own.max(0).values.log().mean()


def gradient(loss: Callable[..., Tensor], a: Tensor, b: Tensor, prior: Tensor, steps: int) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in (a, b)]
    return list(torch.autograd.grad(loss(*leaves, prior, steps), leaves))


def views(n: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors of two views, as far apart as in training, and the prior."""
    g = torch.Generator().manual_seed(0)
    a, noise, prior = (torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(3))
    first = 0.1 * a
    return first.to(dtype), (first + 0.05 * noise).to(dtype), (0.45 * prior).to(dtype)


def check(steps: int) -> None:
    """Both forms agree in float64."""
    a, b, prior = views(24, 16, torch.float64)
    latents = forward_flow(a, a, prior, solver="euler", steps=steps)
    torch.testing.assert_close(latents, plain_lzn.forward_flow(a, prior, steps), atol=1e-8, rtol=0)
    back = reverse_flow(latents, b, solver="euler", steps=steps, keep=True)
    final, every = plain_lzn.reverse_flow(latents, b, steps)
    torch.testing.assert_close(back.final, final, atol=1e-8, rtol=0)
    torch.testing.assert_close(back.probabilities, every, atol=1e-8, rtol=0)
    for x, y in zip(gradient(ours, a, b, prior, steps), gradient(plain, a, b, prior, steps), strict=True):
        assert float((x - y).norm() / y.norm()) < 1e-6


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def peak(work: Callable[[], object]) -> float:
    """MiB allocated at once, at most, beyond what there was before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    now = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most / 2**20


def rate(n: int, d: int) -> float:
    """Floating-point operations a second of a product (n, d) x (d, n)."""
    x, y = torch.randn(n, d), torch.randn(d, n)
    times = [seconds(lambda: [x @ y for _ in range(20)]) / 20 for _ in range(7)]
    return 2 * n * n * d / statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--latent", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="one small round: does everything run?")
    arguments = parser.parse_args()
    n, d, steps = arguments.batch, arguments.latent, arguments.steps
    if arguments.quick:
        n, d, steps, arguments.repeats = 32, 16, 4, 1
    torch.set_num_threads(1)
    check(steps)
    a, b, prior = views(n, d)
    latents = forward_flow(a, a, prior, solver="euler", steps=steps)
    works: dict[str, tuple[Callable[[], object], Callable[[], object], int]] = {
        "forward": (
            lambda: forward_flow(a, a, prior, solver="euler", steps=steps),
            lambda: plain_lzn.forward_flow(a, prior, steps),
            4 * steps,
        ),
        "reverse": (
            lambda: reverse_flow(latents, b, solver="euler", steps=steps),
            lambda: plain_lzn.reverse_flow(latents, b, steps),
            4 * steps,
        ),
        "training step": (
            lambda: gradient(ours, a, b, prior, steps),
            lambda: gradient(plain, a, b, prior, steps),
            (4 + 10) * 2 * steps,
        ),
    }
    short: dict[str, Callable[[], object]] = {
        "forward": lambda: plain_lzn.forward_flow(a, prior, 2),
        "reverse": lambda: plain_lzn.reverse_flow(latents, b, 2),
        "training step": lambda: gradient(plain, a, b, prior, 2),
    }
    for fast, _, _ in works.values():
        fast()
    measured = []
    for repeat in range(arguments.repeats):
        for name, (fast, slow, _) in works.items():
            found = {"workload": name, "repeat": repeat, "plain": seconds(slow)}
            found["headwater"] = statistics.median(seconds(fast) for _ in range(5))
            found["flop_per_second"] = rate(n, d)
            measured.append(found)
    print(f"B = N = {n}, D = {d}, {steps} steps\n")
    print("| | plain, ms | headwater, ms | times as fast | limit, ms | over limit | MiB plain | MiB headwater |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    memory = {}
    for name, (fast, _, products) in works.items():
        own = [m for m in measured if m["workload"] == name]
        theirs, mine = (statistics.median(m[key] for m in own) for key in ("plain", "headwater"))
        limit = products * n * n * d / statistics.median(m["flop_per_second"] for m in own)
        memory[name] = {"plain": peak(short[name]), "headwater": peak(fast)}
        cells = [f"{1e3 * theirs:.0f}", f"{1e3 * mine:.1f}", f"{theirs / mine:.0f}", f"{1e3 * limit:.1f}"]
        cells += [f"{mine / limit:.2f}", f"{memory[name]['plain']:.0f}", f"{memory[name]['headwater']:.1f}"]
        print(f"| {name} | {' | '.join(cells)} |")
    if not arguments.quick:
        print(harness.write_results("vision-lzn-speed", measured, batch=n, latent=d, steps=steps, memory=memory))


if __name__ == "__main__":
    main()
