"""gfnx on HyperGrid with trajectory balance: its environment and rollout, and the whole run of steps in one jit.

The loop over steps is inside the compiled function too and the state is donated, as in the library's baselines; what
those compute for logging alone is left out. The perceptron sees a whole batch of trajectories as one matrix, which
XLA's CPU code runs half as fast again as the baselines' form, a network mapped over trajectories and steps.
"""

import time
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import clock
import gfnx
import jax
import jax.numpy as jnp
import numpy as np
import optax


def make_network(key: Any, widths: list[int]) -> list[dict[str, Any]]:
    """Layers drawn from U(-1, 1) / sqrt(inputs), the distribution that all contestants start from."""
    layers = []
    for i, o in pairwise(widths):
        key, a, b = jax.random.split(key, 3)
        bound = i**-0.5
        w = jax.random.uniform(a, (i, o), minval=-bound, maxval=bound)
        layers.append({"w": w, "b": jax.random.uniform(b, (o,), minval=-bound, maxval=bound)})
    return layers


def apply_network(layers: list[dict[str, Any]], x: Any) -> Any:
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def main() -> None:
    options = clock.grid_arguments().parse_args()
    d, h, batch = options.dimensions, options.side, options.batch
    r0, r1, r2 = clock.REWARDS[options.reward]
    env = gfnx.HypergridEnvironment(gfnx.GeneralHypergridRewardModule(R0=r0, R1=r1, R2=r2), dim=d, side=h)
    key = jax.random.PRNGKey(options.seed)
    key, init_key = jax.random.split(key)
    env_params = env.init(init_key)
    params = {"network": make_network(init_key, [d * h, 256, 256, 2 * d + 1]), "log_z": jnp.zeros(())}
    labels = {"network": "network", "log_z": "log_z"}
    adam = optax.multi_transform({"network": optax.adam(1e-3), "log_z": optax.adam(0.1)}, labels)

    def explore(key: Any, obs: Any, network: Any) -> tuple[Any, dict[str, Any]]:
        logits = apply_network(network, obs)[:, : d + 1]
        uniform = jax.random.bernoulli(key, options.epsilon, (len(obs), 1))
        return jnp.where(uniform, 0.0, logits), {}

    def roll(key: Any, network: Any) -> tuple[Any, dict[str, Any]]:
        return gfnx.utils.forward_rollout(
            rng_key=key,
            num_envs=batch,
            policy_fn=explore,
            policy_params=network,
            env=env,
            env_params=env_params,
        )

    def flat(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

    def loss(params: Any, found: Any) -> Any:
        """Mean square of log Z + sum log P_F - sum log P_B - log R over the padded trajectories (B, T + 1)."""
        shape = found.action.shape
        out = apply_network(params["network"], found.obs.reshape(-1, d * h)).reshape(*shape, -1)
        forbidden = env.get_invalid_mask(flat(found.state), env_params).reshape(*shape, d + 1)
        log_pf = jax.nn.log_softmax(gfnx.utils.mask_logits(out[..., : d + 1], forbidden))
        log_pf = jnp.take_along_axis(log_pf, found.action[..., None], -1)[..., 0]
        log_pf = jnp.where(found.pad, 0.0, log_pf).sum(1)

        before = jax.tree.map(lambda x: x[:, :-1], found.state)
        after = jax.tree.map(lambda x: x[:, 1:], found.state)
        action, pad = found.action[:, :-1], found.pad[:, :-1]
        back = env.get_backward_action(flat(before), action.reshape(-1), flat(after), env_params)
        forbidden = env.get_invalid_backward_mask(flat(after), env_params).reshape(*action.shape, d)
        log_pb = jax.nn.log_softmax(gfnx.utils.mask_logits(out[:, 1:, d + 1 :], forbidden))
        log_pb = jnp.take_along_axis(log_pb, back.reshape(*action.shape, 1), -1)[..., 0]
        log_pb = jnp.where(pad, 0.0, log_pb).sum(1)
        log_reward = jnp.where(pad, 0.0, found.log_gfn_reward[:, :-1]).sum(1)
        return jnp.square(params["log_z"] + log_pf - log_pb - log_reward).mean()

    def train_step(_: Any, state: Any) -> Any:
        params, moments, key, total = state
        key, rolling = jax.random.split(key)
        found, facts = roll(rolling, params["network"])
        gradient = jax.grad(loss)(params, found)
        updates, moments = adam.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
        return params, moments, key, total + facts["trajectory_length"].mean()

    def sample_step(_: Any, state: Any) -> Any:
        params, (kept, rewards), key, total = state
        key, rolling = jax.random.split(key)
        _, facts = roll(rolling, params["network"])
        # Objects and rewards must be used, or nothing computes them.
        kept = kept + facts["final_env_state"].state
        rewards = rewards + facts["log_gfn_reward"]
        return params, (kept, rewards), key, total + facts["trajectory_length"].mean()

    training = options.mode == "train"
    start = adam.init(params) if training else (jnp.zeros((batch, d), jnp.int32), jnp.zeros(batch))
    state = (params, start, key, jnp.zeros(()))
    step = train_step if training else sample_step

    def many(steps: Any, state: Any) -> Any:
        return jax.lax.fori_loop(0, steps, step, state)

    began = time.perf_counter()
    compiled = jax.jit(many, donate_argnums=(1,)).lower(0, state).compile()
    compile_seconds = time.perf_counter() - began

    def advance(steps: int) -> float:
        nonlocal state
        state = jax.block_until_ready(compiled(steps, (*state[:3], jnp.zeros(()))))
        return float(state[3]) / max(steps, 1)

    versions = {name: version(name) for name in ("gfnx", "jax", "jaxlib", "optax", "numpy")}
    clock.measure(options, advance, versions=versions, compile_seconds=compile_seconds)
    if options.export:
        every = env.get_all_states(env_params)
        logits = apply_network(state[0]["network"], env.get_obs(every, env_params))[:, : d + 1]
        forbidden = env.get_invalid_mask(every, env_params)
        log_pf = jax.nn.log_softmax(gfnx.utils.mask_logits(logits, forbidden))
        np.savez(options.export, log_pf=np.asarray(log_pf, np.float64), log_z=float(state[0]["log_z"]))


if __name__ == "__main__":
    main()
