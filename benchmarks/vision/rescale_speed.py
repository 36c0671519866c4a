"""IRN beside a plain writing of the published network: same weights, same outputs; CPU seconds and peak memory.

``python benchmarks/vision/rescale_speed.py`` takes both in turn in one process, one thread, and prints medians: both
directions on an image of 512 x 512 (x4 and x2) and a training step on patches of 144. Peak memory of a training step is
what the process grows by (on Linux), each in a child of its own; beside it what autograd keeps until the backward pass.
Whether time grows with the number of pixels is printed too, and what bf16 costs in PSNR where ``--run`` names a trained run and
``--image`` a file.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import write_results
from headwater_vision_rescale.convert import from_official
from headwater_vision_rescale.flow import quantise
from headwater_vision_rescale.objective import charbonnier, latent_energy, summed_squares
from plain_irn import PlainIRN


def both(couplings: tuple[int, ...], growth: int) -> tuple[PlainIRN, Any]:
    """The plain network with weights away from zero, and the same through the converter."""
    torch.manual_seed(0)
    plain = PlainIRN(couplings, growth)
    for name, parameter in plain.named_parameters():
        if "haar" not in name and parameter.ndim == 4:
            torch.nn.init.normal_(parameter, 0, 0.2 / parameter[0].numel() ** 0.5)
    return plain, from_official(plain.state_dict())["rescaler"]


def in_turn(contestants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each, one after the other, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for k in range(repeats + 1):
        for name, run in list(contestants.items()) if k % 2 == 0 else list(contestants.items())[::-1]:
            began = time.process_time()
            run()
            if k:  # the first round warms up
                seconds[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def loss_of(
    forward: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor], x: Tensor, guide: Tensor
) -> Tensor:
    """The training loss of IRN with a zero latent, through either network."""
    out = forward(x)
    y, z = out[:, :3], out[:, 3:]
    back = inverse(torch.cat([quantise(y), torch.zeros_like(z)], 1))
    return 16 * summed_squares(y, guide) + latent_energy(z) + charbonnier(x, back)


def plain_loss(net: PlainIRN, x: Tensor, guide: Tensor) -> Tensor:
    return loss_of(net, lambda y: net(y, inverse=True), x, guide)


def own_loss(net: Any, x: Tensor, guide: Tensor) -> Tensor:
    return loss_of(net, lambda y: net.inverse(y)[0], x, guide)


def kept_bytes(loss: Callable[[], Tensor], net: torch.nn.Module) -> int:
    """Bytes that autograd keeps from the forward pass to the backward pass, parameters left out."""
    own, seen = {p.untyped_storage().data_ptr() for p in net.parameters()}, {}

    def note(t: Tensor) -> Tensor:
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = loss()
    del out
    return sum(v for k, v in seen.items() if k not in own)


def resident(what: str) -> int:
    """VmRSS (now) or VmHWM (the most so far) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def child(which: str, couplings: tuple[int, ...], growth: int, batch: int, patch: int) -> None:
    """One training step in a process of its own; prints by how much its memory grew at most, and its CPU seconds."""
    torch.set_num_threads(1)
    plain, own = both(couplings, growth)
    scale = 2 ** len(couplings)
    x, guide = torch.rand(batch, 3, patch, patch), torch.rand(batch, 3, patch // scale, patch // scale)
    small = (x[:1, :, : 4 * scale, : 4 * scale], guide[:1, :, :4, :4])
    run: Callable[..., Tensor] = (
        (lambda *a: plain_loss(plain, *a)) if which == "plain" else (lambda *a: own_loss(own, *a))
    )
    run(*small).backward()  # libraries and gradients are in place
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is forgotten
    before, began = resident("VmRSS"), time.process_time()
    run(x, guide).backward()
    print(json.dumps({"bytes": resident("VmHWM") - before, "seconds": time.process_time() - began}))


def peak(which: str, arguments: argparse.Namespace, couplings: tuple[int, ...]) -> int:
    command = [sys.executable, __file__, "--child", which, "--couplings", *map(str, couplings)]
    command += ["--growth", str(arguments.growth), "--batch", str(arguments.batch), "--patch", str(arguments.patch)]
    return int(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["bytes"])


def bf16_loss(run: Path, image: Path) -> dict[str, float]:
    """PSNR of Y there and back in float32 and in bf16, and the largest difference of the small images."""
    import numpy as np
    from headwater.sampling import Model
    from headwater_vision.files import read_image
    from headwater_vision_rescale.tasks.scoring import cropped, restored_scores

    model, found, small = Model(run, device="cpu"), {}, {}
    for precision in ("float32", "bf16"):
        runner: Any = model.sampler(overrides={"sampler": {"precision": precision}})
        truth = cropped(read_image(image), runner.network.scale)
        small[precision] = runner.runner.downscale(truth, torch.Generator())
        back = runner.runner.upscale(small[precision], None, torch.Generator())
        found[precision] = restored_scores(truth, back, runner.network.scale)["psnr_y"]
    gap = np.abs(small["float32"].astype(int) - small["bf16"].astype(int))
    return {**found, "grey_levels": float(gap.max())}


def measure(arguments: argparse.Namespace, couplings: tuple[int, ...]) -> list[dict[str, Any]]:
    plain, own = both(couplings, arguments.growth)
    scale = 2 ** len(couplings)
    edge, patch, batch = arguments.edge, arguments.patch, arguments.batch
    x = torch.rand(1, 3, edge, edge)
    rows: list[dict[str, Any]] = []

    def row(what: str, seconds: dict[str, float], **more: Any) -> None:
        rows.append({"scale": scale, "what": what, **seconds, "ratio": seconds["plain"] / seconds["headwater"], **more})
        print(json.dumps(rows[-1]), flush=True)

    with torch.no_grad():
        a, b = plain(x), own(x)
        gap = float((a - b).abs().max())
        back = float((plain(a, inverse=True) - own.inverse(a)[0]).abs().max())
        assert gap < 1e-4 and back < 1e-4, f"the networks differ by {gap} and {back}"  # noqa: PT018 - one fact
        row("downscale", in_turn({"plain": lambda: plain(x), "headwater": lambda: own(x)}, arguments.repeats), gap=gap)
        seconds = in_turn(
            {"plain": lambda: plain(a, inverse=True), "headwater": lambda: own.inverse(a)}, arguments.repeats
        )
        row("upscale", seconds, gap=back)
        half = x[..., : edge // 2, : edge // 2]
        grown = in_turn({"quarter": lambda: own(half), "whole": lambda: own(x)}, arguments.repeats)
        print(f"x{scale}: four times the pixels take {grown['whole'] / grown['quarter']:.2f} times as long")
    patches, guide = torch.rand(batch, 3, patch, patch), torch.rand(batch, 3, patch // scale, patch // scale)
    losses = [plain_loss(plain, patches, guide), own_loss(own, patches, guide)]
    assert torch.allclose(*losses, rtol=1e-5), losses
    del losses
    seconds = in_turn(
        {
            "plain": lambda: plain_loss(plain, patches, guide).backward(),
            "headwater": lambda: own_loss(own, patches, guide).backward(),
        },
        arguments.repeats,
    )
    memory = {name: peak(name, arguments, couplings) for name in ("plain", "headwater")}
    kept = {
        "plain": kept_bytes(lambda: plain_loss(plain, patches, guide), plain),
        "headwater": kept_bytes(lambda: own_loss(own, patches, guide), own),
    }
    row("training step", seconds, peak_bytes=memory, peak_share=memory["headwater"] / memory["plain"], kept_bytes=kept)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, once: does everything run?")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--growth", type=int, default=32)
    parser.add_argument("--edge", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--patch", type=int, default=144)
    parser.add_argument("--scales", type=int, nargs="+", choices=(2, 4), default=[4, 2])
    parser.add_argument("--run", type=Path, help="a trained run, for what bf16 costs")
    parser.add_argument("--image", type=Path, help="the image that it is tried on")
    parser.add_argument("--child", choices=("plain", "headwater"), help=argparse.SUPPRESS)
    parser.add_argument("--couplings", type=int, nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, tuple(arguments.couplings), arguments.growth, arguments.batch, arguments.patch)
        return
    torch.set_num_threads(1)
    if arguments.quick:
        arguments.repeats, arguments.growth, arguments.edge, arguments.batch, arguments.patch = 1, 8, 64, 1, 48
    number = 1 if arguments.quick else 8
    rows = [r for scale in arguments.scales for r in measure(arguments, (number,) * (scale.bit_length() - 1))]
    facts = {} if arguments.run is None else {"bf16": bf16_loss(arguments.run, arguments.image)}
    print(facts or "")
    if not arguments.quick:
        print(write_results("vision-rescale-speed", rows, **facts))


if __name__ == "__main__":
    main()
