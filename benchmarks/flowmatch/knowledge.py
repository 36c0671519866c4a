"""What there is to know of a letter, and how well the untrained embedding tells letters apart.

    python benchmarks/flowmatch/knowledge.py [--points 200 700] [--neighbours 0 50]

First the least loss on each unseen letter, a mean over times, in closed form: of a field that predicts nothing, of one
that knows the letter's mean and covariance and takes it for a Gaussian, and of one that knows its points.

Then two draws of points of every training letter are embedded. For the principal directions of the embeddings: their
spread over letters, and how many times the noise of a draw it is. A direction at 1 tells nothing, and a field that is
conditioned on it sees noise. Prints two tables.
"""

import argparse

import torch
from headwater_flow_meta.networks import PopulationEmbedding
from headwater_flow_meta.tasks.letters import Letters, LettersConfig
from headwater_flow_meta.tasks.populations import Population
from torch import Tensor

SHOWN = 16
TIMES = torch.arange(0.05, 1.0, 0.1)


def least_losses(population: Population, blur: float) -> tuple[float, float]:
    """The loss of a field that knows a Gaussian, and of one that knows the points of the silhouette.

    At time t a point x1 of the silhouette is at x = x1 + (1 - t) blur eps, and the velocity to be told is
    -blur eps = (x1 - x) / (1 - t): the best field has E[x1 | x] in the place of x1.
    """
    assert population.target is not None
    target = population.target
    generator = torch.Generator().manual_seed(0)
    x1 = target[torch.randperm(len(target), generator=generator)[:300]]
    eps = torch.randn(x1.shape, generator=generator)
    mean, covariance = target.mean(0), torch.cov(target.T)
    found = []
    for t in TIMES:
        s = (1 - t) * blur
        x = x1 + s * eps
        gain = covariance @ torch.linalg.inv(covariance + s * s * torch.eye(2))
        weights = (-torch.cdist(x, target).square() / (2 * s * s)).softmax(1)
        for told in (mean + (x - mean) @ gain.T, weights @ target):
            found.append(float(((told - x) / (1 - t) + blur * eps).square().sum(1).mean()))
    return sum(found[::2]) / len(TIMES), sum(found[1::2]) / len(TIMES)


def ratios(points: int, neighbours: int) -> Tensor:
    """Spread over noise (H,) of the principal directions of the embeddings of all training letters."""
    torch.manual_seed(0)
    embedding = PopulationEmbedding(2, neighbours=neighbours)
    generator = torch.Generator().manual_seed(0)
    draws = []
    with torch.no_grad():
        for _ in range(2):
            found = []
            for population in Letters(LettersConfig()).populations("train"):
                rows = torch.randperm(len(population.source), generator=generator)[:points]
                found.append(embedding(population.source[rows].unsqueeze(0))[0])
            draws.append(torch.stack(found))
    first, second = draws
    _, size, directions = torch.linalg.svd(first - first.mean(0), full_matrices=False)
    noise = ((first - second) @ directions.T).square().mean(0).sqrt() / 2**0.5
    return size / len(first) ** 0.5 / noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[200, 700])
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 50])
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = LettersConfig()
    for population in Letters(config).populations("test"):
        gaussian, silhouette = least_losses(population, config.blur)
        nothing = 2 * config.blur**2
        print(f"{population.name}: nothing {nothing:.3f}, a Gaussian {gaussian:.3f}, the silhouette {silhouette:.3f}")
    for points in options.points:
        for neighbours in options.neighbours:
            shown = " ".join(f"{float(r):.1f}" for r in ratios(points, neighbours)[:SHOWN])
            print(f"{points} points, k = {neighbours}: {shown}", flush=True)


if __name__ == "__main__":
    main()
