"""How well the untrained embedding tells the training letters apart, by how many points of each it sees.

    python benchmarks/flowmatch/embedding.py [--points 200 700] [--neighbours 0 50]

Two draws of points of every training letter are embedded. For the principal directions of the embeddings: their spread
over letters, and how many times the noise of a draw it is. A direction at 1 tells nothing, and a field that is
conditioned on it sees noise. Prints a table.
"""

import argparse

import torch
from headwater_flow_meta.networks import PopulationEmbedding
from headwater_flow_meta.tasks.letters import Letters, LettersConfig

SHOWN = 16


def ratios(points: int, neighbours: int) -> torch.Tensor:
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
    for points in options.points:
        for neighbours in options.neighbours:
            shown = " ".join(f"{float(r):.1f}" for r in ratios(points, neighbours)[:SHOWN])
            print(f"{points} points, k = {neighbours}: {shown}", flush=True)


if __name__ == "__main__":
    main()
