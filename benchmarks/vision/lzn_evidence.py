"""What vision-lzn learns, several seeds: representation, classification, and rectified flow with and without latents.

    python benchmarks/vision/lzn_evidence.py [--parts probe labels cifar] [--seeds 3] [--minutes M] [--data ZIP]

``probe``: the stage represent on scikit-learn's digits; logistic regression on its features with 50, 100 and all
labels of the 1,347 training digits, beside the pixels and the same encoder untrained. Small sets of labels are drawn
five times for each seed, the same for all. ``labels``: the small encoder with label anchors and the label loss alone,
beside the same encoder trained with cross entropy on the same batches. ``cifar``: the stage generate on the CIFAR
subset in the shared data (``--data``), reduced to 16 pixels, beside the same decoder whose latent is always zero, at
equal steps: the error of reconstruction, and the Fréchet distance on the features of a small classifier trained on
the same images (feature-FD; it is not the FID).

Every run is a folder under ``--work``; what is there is not done again, a run that was stopped goes on, and after
``--minutes`` nothing is started. ``cifar`` takes all its runs from one milestone to the next, so that they are
comparable whenever it is stopped. Writes ``results/vision-lzn-evidence.json`` and ``docs/figures/vision-lzn.svg``.
"""

import argparse
import json
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import headwater
import numpy as np
import torch
import torch.nn.functional as F
from headwater import StageEntry, hookimpl, registry
from headwater.run import Run
from headwater_vision.datasets import ImageSet, fitted
from headwater_vision.files import read_image
from headwater_vision_lzn.flow import forward_flow, reverse_flow
from headwater_vision_lzn.judging import features_of
from headwater_vision_lzn.networks import Anchors, ConvEncoder
from headwater_vision_lzn.objective import alignment_losses, class_log_weights
from headwater_vision_lzn.solvers import images_of, noise_of
from headwater_vision_lzn.space import Space, network, to_bytes, to_pixels
from headwater_vision_lzn.tasks.images import Digits, EmbeddedConfig
from headwater_vision_lzn.trainer import FlowTrainer
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "vision-lzn-evidence.json"
FIGURE = ROOT / "docs" / "figures" / "vision-lzn.svg"
CPU = torch.device("cpu")

PROBE_LABELS = (50, 100, 1347)
SUBSETS = 5
LABEL_CHECKS = (100, 200, 400, 700, 1000)
CIFAR_EDGE = 16
IMAGE_STEPS = 20
MEASURED: dict[str, Any] = {
    "milestones": (100, 250, 500, 1000, 2000, 4000), "judged": 128, "sampled": 512, "classifier": 400,
}  # fmt: skip
"""The part cifar: where both arms are compared, images reconstructed and sampled, steps of the classifier."""

CIFAR: dict[str, Any] = {
    "latent": 64, "width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (8,), "batch_size": 64, "ema": 0.995,
    "lr_encoder": 3e-4, "lr_decoder": 1e-3, "warm_up": 50,
}  # fmt: skip


class PlainFlow(FlowTrainer):
    """Rectified flow without latents: the same decoder, given zeros."""

    def step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        x = self.pixels(batch["x"])
        loss = self.image_loss(batch, x, torch.zeros_like(batch["prior"]))
        self.learn(loss, batch)
        return {"loss": loss.detach()}

    def validate(self) -> dict[str, float]:
        return {}


class Stages:
    """The stage of the baseline, registered by this script."""

    API = 1

    @hookimpl
    def headwater_trainers(self) -> list[StageEntry]:
        return [
            StageEntry(
                name="plain", method="vision-lzn", summary="rectified flow without latents",
                trainer=f"{__name__}:PlainFlow", config="headwater_vision_lzn.config:LznConfig",
            )
        ]  # fmt: skip


def trained(
    folder: Path, stage: str, seed: int, steps: int, task: str | None = None, table: Mapping[str, Any] | None = None
) -> Run:
    """The run of a stage and seed at ``steps``, gone on with where there is one."""
    if (folder / "manifest.json").exists():
        run = Run(folder)
        return run if (run.latest() or 0) >= steps else headwater.resume(folder, max_steps=steps)
    fit = {
        "max_steps": steps, "seed": seed, "accelerator": "cpu", "threads": 1, "checkpoint_every": 50, "log_every": 25,
    }  # fmt: skip
    tables = {**(table or {}), "fit": fit}
    return headwater.train("vision-lzn", folder, task=task, stage=stage, overrides=tables)


def nchw(images: ImageSet) -> Tensor:
    return torch.from_numpy(images.images).permute(0, 3, 1, 2).contiguous()


# Representation


def score(features: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray) -> float:
    """Top-1 of logistic regression (2,000 iterations at most) on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return float(model.fit(features, labels).score(test, truth))


def probe(work: Path, seed: int, steps: int) -> dict[str, Any]:
    """Accuracies by features and number of labels."""
    run = trained(work / f"probe-{seed}", "represent", seed, steps)
    task = Digits(EmbeddedConfig())
    train, test = task.training(), task.testing()
    model = headwater.load(run, device="cpu")
    torch.manual_seed(seed)
    with torch.no_grad():
        encoders = {"lzn": network(model.modules, "encoder"), "random encoder": ConvEncoder(1, 32).eval()}
        found = {name: [features_of(e, nchw(s), CPU).numpy() for s in (train, test)] for name, e in encoders.items()}
    found["pixels"] = [s.images.reshape(len(s), -1) / 255.0 for s in (train, test)]
    rng = np.random.default_rng(seed)
    rows = {
        n: [rng.permutation(len(train))[:n] for _ in range(1 if n == len(train) else SUBSETS)] for n in PROBE_LABELS
    }
    assert train.labels is not None
    assert test.labels is not None
    return {
        name: {
            str(n): mean(score(known[r], train.labels[r], unknown, test.labels) for r in rows[n]) for n in PROBE_LABELS
        }
        for name, (known, unknown) in found.items()
    }


# Classification


def labels(seed: int, steps: int) -> dict[str, Any]:
    """Test accuracy by steps: label anchors with prior 0 and 1, and cross entropy, on the same batches."""
    task = Digits(EmbeddedConfig())
    train, test = task.training(), task.testing()
    x, y = to_pixels(nchw(train)), torch.from_numpy(train.labels)
    x_test, y_test = to_pixels(nchw(test)), torch.from_numpy(test.labels)
    torch.manual_seed(seed)
    encoder, anchors = ConvEncoder(1, 32), Anchors(10, 32)
    plain = ConvEncoder(1, 32)
    plain.load_state_dict(encoder.state_dict())
    linear = torch.nn.Linear(32, 10)
    zoned = torch.optim.Adam(
        [{"params": encoder.parameters(), "lr": 1e-3}, {"params": anchors.parameters(), "lr": 2e-3}]
    )
    crossed = torch.optim.Adam([*plain.parameters(), *linear.parameters()], lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, dict[str, float]] = {"anchors, prior 0": {}, "anchors, prior 1": {}, "cross entropy": {}}
    bank = slice(256)
    for step in range(1, steps + 1):
        rows = torch.randperm(len(x), generator=generator)[:256]
        own = encoder(x[rows])
        latents = forward_flow(own, own, torch.randn(256, 32, generator=generator), solver="dpm")
        weights = class_log_weights(y[rows], 10)
        back = reverse_flow(
            latents, anchors.points, solver="euler", steps=50, log_weights=weights, targets=y[rows]
        )  # fmt: skip
        assert back.log_targets is not None
        for optimiser, loss in (
            (zoned, alignment_losses(back.log_targets, 0.2)[1]),
            (crossed, F.cross_entropy(linear(plain(x[rows])), y[rows])),
        ):
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], 1.0)
            optimiser.step()
        if step in LABEL_CHECKS or step == steps:
            facts = {
                "flow": {"solver": "dpm", "steps": 20, "label_steps": 50}, "reference": nchw(train)[bank],
            }  # fmt: skip
            with torch.no_grad():
                space = Space({"encoder": encoder, "labels": anchors}, facts, CPU)
                e = encoder(x_test)
                for scale in (0, 1):
                    z = torch.randn(e.shape, generator=torch.Generator().manual_seed(0))
                    hit = space.labels_of(space.latents(e, scale * z))[0] == y_test
                    found[f"anchors, prior {scale}"][str(step)] = float(hit.float().mean())
                hit = linear(plain(x_test)).argmax(1) == y_test
                found["cross entropy"][str(step)] = float(hit.float().mean())
    return found


# Rectified flow


def cifar_images(archive: Path, work: Path) -> dict[str, Path]:
    """The images of the archive at 16 pixels, as NPZ files."""
    paths = {split: work / f"cifar-{split}-{CIFAR_EDGE}.npz" for split in ("train", "test")}
    if all(path.exists() for path in paths.values()):
        return paths
    with zipfile.ZipFile(archive) as source:
        names = sorted(n for n in source.namelist() if n.endswith(".jpg"))
        classes = sorted({n.split("/")[1] for n in names})
        for split, path in paths.items():
            mine = [n for n in names if n.startswith(split)]
            images = []
            for name in mine:
                with source.open(name) as file:
                    images.append(fitted(read_image(file, name=name), (CIFAR_EDGE, CIFAR_EDGE)))
            known = np.array([classes.index(n.split("/")[1]) for n in mine])
            np.savez(path, images=np.stack(images), labels=known)
    return paths


def classifier(paths: Mapping[str, Path], work: Path, steps: int) -> ConvEncoder:
    """A small classifier of the training images, whose features the feature-FD compares."""
    path, net = work / "cifar-classifier.pt", ConvEncoder(3, 32, 32)
    if not path.exists():
        torch.manual_seed(0)
        head = torch.nn.Linear(32, 10)
        with np.load(paths["train"]) as arrays:
            x, y = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2), torch.from_numpy(arrays["labels"])
        adam = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=2e-3)
        for _ in range(steps):
            rows = torch.randint(len(x), (128,))
            loss = F.cross_entropy(head(net(to_pixels(x[rows]))), y[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
        torch.save(net.state_dict(), path)
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


def frechet(a: Tensor, b: Tensor) -> float:
    """The Fréchet distance of the Gaussians fitted to features (N, F) and (M, F)."""
    a, b = a.double(), b.double()
    moved = (a.mean(0) - b.mean(0)).square().sum()
    root = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.clamp(min=0).sqrt().sum()
    return float(moved + a.T.cov().trace() + b.T.cov().trace() - 2 * root)


def judge(
    run: Run, paths: Mapping[str, Path], net: ConvEncoder, seed: int, measured: Mapping[str, Any]
) -> dict[str, float]:
    """The error of reconstruction on test images, and the feature-FD of samples."""
    model = headwater.load(run, device="cpu")
    space = Space(model.modules, model.facts, CPU)
    plain = run.manifest.stage == "plain"
    with np.load(paths["test"]) as arrays:
        test = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        judged = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[: measured["judged"]]]
        errors = []
        for part in judged.split(64):
            prior = space.draws(len(part), g)
            latents = torch.zeros_like(prior) if plain else space.latents(space.anchors(part), prior)
            field, x = space.field(latents), space.pixels(part)
            again = images_of(field, noise_of(field, x, steps=IMAGE_STEPS), steps=IMAGE_STEPS)
            errors.append((again - x).flatten(1).norm(dim=1))
        made = []
        for _ in range(measured["sampled"] // 64):
            latents = space.draws(64, g)
            field = space.field(torch.zeros_like(latents) if plain else latents)
            noise = torch.randn(64, 3, CIFAR_EDGE, CIFAR_EDGE, generator=g)
            made.append(to_bytes(images_of(field, noise, steps=IMAGE_STEPS)))
        distance = frechet(features_of(net, test, CPU), features_of(net, torch.cat(made), CPU))
    losses = [line["loss"] for line in run.metrics() if "loss" in line][-4:]
    return {
        "reconstruction_l2": float(torch.cat(errors).mean()), "feature_fd": distance, "training_loss": mean(losses),
    }  # fmt: skip


def cifar(
    archive: Path,
    work: Path,
    seeds: Sequence[int],
    steps: int,
    measured: Mapping[str, Any],
    over: Callable[[], bool],
    note: Callable[[str, Any], None],
) -> None:
    """All runs from milestone to milestone."""
    paths = cifar_images(archive, work)
    net = classifier(paths, work, measured["classifier"])
    table = {"task": {"path": str(paths["train"]), "flip": True}, "trainer": CIFAR}
    for milestone in [m for m in measured["milestones"] if m <= steps]:
        for seed in seeds:
            for stage in ("plain", "generate"):
                name = f"cifar/{milestone}/{stage}/{seed}"
                if note(name, None) is not None:
                    continue
                if over():
                    return
                run = trained(work / f"cifar-{stage}-{seed}", stage, seed, milestone, "image-set", table)
                note(name, judge(run, paths, net, seed, measured))


# Results


def spread(values: Sequence[float]) -> tuple[float, float]:
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def of_most_seeds(done: Mapping[str, Any], part: str) -> tuple[int, list[Any]]:
    """The number of steps that most seeds have reached (the largest such), and what they found."""
    by_steps: dict[int, list[Any]] = {}
    for name, found in done.items():
        if name.startswith(f"{part}/"):
            by_steps.setdefault(int(name.split("/")[1]), []).append(found)
    return max(by_steps.items(), key=lambda item: (len(item[1]), item[0])) if by_steps else (0, [])


def summary(done: Mapping[str, Any]) -> list[str]:
    """The tables, in Markdown."""
    lines = []
    steps, probes = of_most_seeds(done, "probe")
    if probes:
        lines += [
            f"linear probe after {steps} steps, {len(probes)} seeds",
            "",
            "| features | 50 | 100 | 1347 labels |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name in ("pixels", "random encoder", "lzn"):
            cells = ["{:.3f} +- {:.3f}".format(*spread([p[name][str(n)] for p in probes])) for n in PROBE_LABELS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    _, known = of_most_seeds(done, "labels")
    if known:
        checks = list(known[0]["cross entropy"])
        lines += ["", f"test accuracy by steps, {len(known)} seeds", "", f"| | {' | '.join(checks)} |"]
        lines.append("| --- |" + " ---: |" * len(checks))
        for name in known[0]:
            cells = ["{:.3f} +- {:.3f}".format(*spread([p[name][s] for p in known])) for s in checks]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    milestones = sorted({int(k.split("/")[1]) for k in done if k.startswith("cifar/")})
    if milestones:
        lines += [
            "",
            "| steps | arm | seeds | reconstruction L2 | feature-FD | loss |",
            "| ---: | --- | ---: | ---: | ---: | ---: |",
        ]
    for m in milestones:
        for stage, name in (("plain", "rectified flow"), ("generate", "with LZN")):
            found = [v for k, v in done.items() if k.startswith(f"cifar/{m}/{stage}/")]
            if found:
                cells = [
                    "{:.3f} +- {:.3f}".format(*spread([f[key] for f in found]))
                    for key in ("reconstruction_l2", "feature_fd", "training_loss")
                ]
                lines.append(f"| {m} | {name} | {len(found)} | {' | '.join(cells)} |")
    return lines


def draw(done: Mapping[str, Any], path: Path) -> None:
    """The figure: probe, classification, and both measures of the flow, as far as they are known."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "headwater"
    from matplotlib import pyplot as plt

    (steps, probes), (_, known) = of_most_seeds(done, "probe"), of_most_seeds(done, "labels")
    milestones = sorted({int(k.split("/")[1]) for k in done if k.startswith("cifar/")})
    count = bool(probes) + bool(known) + 2 * bool(milestones)
    figure, row = plt.subplots(1, count, figsize=(4.2 * count, 3.4), layout="constrained", squeeze=False)
    axes = iter(row[0])
    if probes:
        axis = next(axes)
        for name in ("pixels", "random encoder", "lzn"):
            middle, error = zip(*(spread([p[name][str(n)] for p in probes]) for n in PROBE_LABELS), strict=True)
            axis.errorbar(PROBE_LABELS, middle, error, marker="o", capsize=3, label=name)
        title = f"digits: linear probe, {steps} steps, {len(probes)} seeds"
        axis.set(xscale="log", xlabel="labels", ylabel="test accuracy", title=title)
        axis.legend()
    if known:
        axis = next(axes)
        for name, by_step in known[0].items():
            middle, error = zip(*(spread([k[name][s] for k in known]) for s in by_step), strict=True)
            axis.errorbar([int(s) for s in by_step], middle, error, marker="o", capsize=3, label=name)
        axis.set(xlabel="steps", ylabel="test accuracy", title=f"digits: classification, {len(known)} seeds")
        axis.legend()
    for key, label in (("reconstruction_l2", "reconstruction L2"), ("feature_fd", "feature-FD")) if milestones else ():
        axis = next(axes)
        for stage, name in (("plain", "rectified flow"), ("generate", "with LZN")):
            points = [(m, [v[key] for k, v in done.items() if k.startswith(f"cifar/{m}/{stage}/")]) for m in milestones]
            points = [(m, values) for m, values in points if values]
            if points:
                middle, error = zip(*(spread(values) for _, values in points), strict=True)
                axis.errorbar([m for m, _ in points], middle, error, marker="o", capsize=3, label=name)
        axis.set(xlabel="steps", ylabel=label, title=f"CIFAR subset, {CIFAR_EDGE} pixels")
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", default=["probe", "labels", "cifar"], choices=["probe", "labels", "cifar"]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--probe-steps", type=int, default=600)
    parser.add_argument("--label-steps", type=int, default=1000)
    parser.add_argument("--cifar-steps", type=int, default=2000)
    parser.add_argument("--data", type=Path, help="cifar10_jpeg_10k_2k.zip of the shared data")
    parser.add_argument("--quick", action="store_true", help="two steps of everything: does it run? Nothing is kept")
    parser.add_argument("--minutes", type=float, help="after so many nothing is started")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "vision-lzn")
    arguments = parser.parse_args()
    if "cifar" in arguments.parts and arguments.data is None:
        parser.error("--data is needed for the part cifar: the archive with the CIFAR subset")
    torch.set_num_threads(1)
    registry.register(Stages())
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            arguments.work, arguments.seeds = Path(folder), 1
            arguments.probe_steps = arguments.label_steps = arguments.cifar_steps = 2
            everything(arguments, {**MEASURED, "milestones": (2,), "judged": 64, "sampled": 64, "classifier": 2})
        return
    done = everything(arguments, MEASURED)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    draw(done, FIGURE)


def everything(arguments: argparse.Namespace, measured: Mapping[str, Any]) -> dict[str, Any]:
    """All parts that are asked for; what is known afterwards."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    began, path = time.monotonic(), arguments.work / "done.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def note(name: str, value: Any) -> Any:
        if value is not None:
            done[name] = value
            path.write_text(json.dumps(done, indent=1, sort_keys=True))
            print(f"{time.strftime('%H:%M:%S')} {name}: {value}", flush=True)
        return done.get(name)

    def over() -> bool:
        return arguments.minutes is not None and time.monotonic() - began > 60 * arguments.minutes

    seeds = range(arguments.seeds)
    jobs: dict[str, tuple[int, Callable[[int, int], Any]]] = {
        "probe": (arguments.probe_steps, lambda seed, steps: probe(arguments.work, seed, steps)),
        "labels": (arguments.label_steps, labels),
    }
    for part in arguments.parts:
        if part == "cifar":
            cifar(arguments.data, arguments.work, seeds, arguments.cifar_steps, measured, over, note)
            continue
        steps, job = jobs[part]
        for seed in seeds:
            name = f"{part}/{steps}/{seed}"
            if note(name, None) is None and not over():
                note(name, job(seed, steps))
    print("\n".join(summary(done)))
    return done


if __name__ == "__main__":
    main()
