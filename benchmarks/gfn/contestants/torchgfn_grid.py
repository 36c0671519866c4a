"""torchgfn on HyperGrid with trajectory balance: its public classes, debug checks off, one trunk for P_F and P_B.

With exploration, training is off-policy: the library's guide says to sample without log-probabilities and to
evaluate them anew in the loss (`--reuse none`). Its samplers can also keep the network's outputs, which the loss then
takes in the place of a second pass (`--reuse outputs`); both are right, the faster one is the contestant.
"""

from importlib.metadata import version

import clock
import numpy as np
import torch
from gfn.estimators import DiscretePolicyEstimator
from gfn.gflownet import TBGFlowNet
from gfn.gym import HyperGrid
from gfn.preprocessors import KHotPreprocessor
from gfn.samplers import Sampler
from gfn.utils.modules import MLP


class FloatKHot(KHotPreprocessor):
    """The library's one-hot features as floats, which its perceptron would make of them anyway."""

    def __init__(self, height: int, ndim: int) -> None:
        super().__init__(height=height, ndim=ndim)
        self.target_dtype = torch.float32


def main() -> None:
    parser = clock.grid_arguments()
    parser.add_argument("--reuse", choices=("none", "outputs"), default="none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    d, h = options.dimensions, options.side
    r0, r1, r2 = clock.REWARDS[options.reward]
    rewards = {"R0": r0, "R1": r1, "R2": r2}
    env = HyperGrid(ndim=d, height=h, reward_fn_str="original", reward_fn_kwargs=rewards, validate_modes=False)
    features = FloatKHot(h, d)
    forward = MLP(input_dim=d * h, output_dim=d + 1, hidden_dim=256, n_hidden_layers=2)
    backward = MLP(input_dim=d * h, output_dim=d, trunk=forward.trunk)
    pf = DiscretePolicyEstimator(forward, env.n_actions, preprocessor=features)
    pb = DiscretePolicyEstimator(backward, env.n_actions, preprocessor=features, is_backward=True)
    model = TBGFlowNet(pf=pf, pb=pb, init_logZ=0.0)
    sampler = Sampler(estimator=pf)
    optimizer = torch.optim.Adam(model.pf_pb_parameters(), lr=1e-3)
    optimizer.add_param_group({"params": model.logz_parameters(), "lr": 0.1})
    keep = options.reuse == "outputs" and options.mode == "train"

    def draw() -> object:
        with torch.set_grad_enabled(keep):
            return sampler.sample_trajectories(
                env,
                n=options.batch,
                save_logprobs=False,
                save_estimator_outputs=keep,
                epsilon=options.epsilon,
            )

    def train(steps: int) -> float:
        lengths = []
        for _ in range(steps):
            trajectories = draw()
            optimizer.zero_grad()
            loss = model.loss(env, trajectories, recalculate_all_logprobs=not keep)
            loss.backward()
            optimizer.step()
            lengths.append(trajectories.terminating_idx.float().mean())
        return float(torch.stack(lengths).mean())

    def sample(steps: int) -> float:
        lengths = [draw().terminating_idx.float().mean() for _ in range(steps)]
        return float(torch.stack(lengths).mean())

    versions = {name: version(name) for name in ("torchgfn", "torch")}
    clock.measure(options, train if options.mode == "train" else sample, versions=versions)
    if options.export:
        axes = [torch.arange(h)] * d
        states = env.States(torch.cartesian_prod(*axes).reshape(-1, d))
        with torch.no_grad():
            log_pf = pf.to_probability_distribution(states, pf(states)).logits
        np.savez(options.export, log_pf=log_pf.double().numpy(), log_z=float(model.logZ))


if __name__ == "__main__":
    main()
