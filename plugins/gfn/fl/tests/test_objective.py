import pytest
import torch
from headwater_gfn.objective import detailed_balance, sub_trajectory_balance, terminate, valid_transitions
from headwater_gfn_fl.objective import state_flows


@pytest.fixture
def terms():
    """Random terms of trajectories of unequal length, float64, in the layout of the objectives."""
    generator = torch.Generator().manual_seed(0)
    steps, n = 6, 5
    length = torch.tensor([6, 1, 3, 4, 2])
    valid = valid_transitions(length, steps)
    states = torch.cat([torch.ones_like(valid[:1]), valid])

    def draw(where):
        return torch.where(where, torch.randn(where.shape, generator=generator, dtype=torch.float64), 0.0)

    pf, pb, flow, partial = draw(valid), draw(valid), draw(states), draw(states)
    partial[0] = 0.0
    log_reward = partial[length, torch.arange(n)]
    return pf, pb, flow, partial, log_reward, length


def test_without_partial_energies_it_is_detailed_balance(terms):
    pf, pb, flow, partial, log_reward, length = terms
    ours = state_flows(flow, torch.zeros_like(partial), log_reward, length)
    plain = terminate(flow, log_reward, length)
    assert float(detailed_balance(pf, pb, ours, length)) == pytest.approx(
        float(detailed_balance(pf, pb, plain, length)), abs=1e-12
    )
    scaled = state_flows(flow, partial, log_reward, length, energy_scale=0.0)
    assert torch.equal(scaled, plain)


@pytest.mark.parametrize("terminal_flow", ["zero", "const", "free"])
def test_fl_db_equals_its_definition_transition_by_transition(terms, terminal_flow):
    pf, pb, flow, partial, log_reward, length = terms
    constant = torch.tensor(0.7, dtype=torch.float64)
    ours = state_flows(flow, partial, log_reward, length, terminal_flow=terminal_flow, log_constant=constant)
    squares = []
    for i, n in enumerate(length.tolist()):
        for t in range(n):
            after = flow[t + 1, i]
            if t + 1 == n:
                after = {"zero": 0.0, "const": 0.7, "free": flow[t + 1, i]}[terminal_flow]
            energy = -(partial[t + 1, i] - partial[t, i])
            squares.append((flow[t, i] + pf[t, i] - after - pb[t, i] + energy) ** 2)
    expected = torch.stack([torch.as_tensor(s) for s in squares]).mean()
    assert float(detailed_balance(pf, pb, ours, length)) == pytest.approx(float(expected), rel=1e-12)


def test_the_residuals_of_a_trajectory_telescope(terms):
    pf, pb, flow, partial, log_reward, length = terms
    ours = state_flows(flow, partial, log_reward, length)
    residual = torch.where(valid_transitions(length, len(pf)), ours[:-1] + pf - ours[1:] - pb, 0.0)
    torch.testing.assert_close(residual.sum(0), flow[0] + (pf - pb).sum(0) - log_reward, rtol=0, atol=1e-12)


def test_fl_subtb_of_single_steps_is_fl_db(terms):
    pf, pb, flow, partial, log_reward, length = terms
    for i, n in enumerate(length.tolist()):
        rows = (pf[:n, i : i + 1], pb[:n, i : i + 1])
        ours = state_flows(
            flow[: n + 1, i : i + 1], partial[: n + 1, i : i + 1], log_reward[i : i + 1], length[i : i + 1]
        )
        short = sub_trajectory_balance(*rows, ours, length[i : i + 1], 1e-12)
        assert float(short) == pytest.approx(float(detailed_balance(*rows, ours, length[i : i + 1])), rel=1e-9)


def test_an_incomplete_trajectory_does_not_see_the_terminal_reward(terms):
    pf, pb, flow, partial, log_reward, length = terms
    complete = torch.tensor([True, False, True, False, False])
    spoiled = torch.where(complete, log_reward, torch.nan)
    ours = state_flows(flow, partial, spoiled, length, complete)
    assert torch.isfinite(detailed_balance(pf, pb, ours, length))


def test_the_molecule_losses_of_the_official_code():
    """Sums over transitions; the last flow cancels in the forward-looking one (skipped without the reference data)."""
    from pathlib import Path

    import numpy as np

    name = "shared/data/gfn-fl/parity/molecule_losses.npz"
    file = next((p / name for p in Path(__file__).resolve().parents if (p / name).exists()), None)
    if file is None:
        pytest.skip("the official reference numbers are not here")
    data = {k: torch.from_numpy(v).double() for k, v in np.load(file, allow_pickle=False).items()}
    length = data["lengths"].long()
    steps, n = int(length.max()), len(length)
    valid = valid_transitions(length, steps)

    def spread(values, rows=valid):
        out = torch.zeros(n, rows.shape[0], dtype=torch.float64)
        return out.masked_scatter(rows.T, values).T.contiguous()

    pf, flow_of = data["log_pf"].requires_grad_(), data["log_flow"].requires_grad_()
    pb = spread(data["log_pb"])
    flow = torch.cat([spread(flow_of), torch.zeros(1, n, dtype=torch.float64)])
    last = flow[length - 1, torch.arange(n)]
    flow = terminate(flow, last, length)  # a state made by STOP has the flow of the state before
    step_reward = torch.cat([torch.zeros(1, n, dtype=torch.float64), spread(data["log_transition_reward"])])
    partial = step_reward.cumsum(0)
    total = length.sum()
    db = detailed_balance(spread(pf), pb, terminate(flow, data["log_reward"], length), length) * total
    ends = partial[length, torch.arange(n)]
    fl = (
        detailed_balance(spread(pf), pb, state_flows(flow, partial, ends, length, terminal_flow="free"), length) * total
    )
    for name, loss in (("db", db), ("fl", fl)):
        assert float(loss.detach()) == pytest.approx(float(data[name]), rel=1e-5)
        for grad, key in zip(
            torch.autograd.grad(loss, (pf, flow_of), retain_graph=True), ("log_pf", "log_flow"), strict=True
        ):
            expected = data[f"{name}_grad_{key}"]
            torch.testing.assert_close(grad, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
