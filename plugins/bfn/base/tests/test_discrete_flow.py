"""The categorical flow against explicit mixtures and chains."""

import math

import pytest
import torch
from headwater_bfn import discrete
from torch.nn.functional import one_hot

K = 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [1, 9])
def test_accuracies_add_up_to_beta(n):
    total = sum(discrete.step_alpha(i, n, 2.5) for i in range(1, n + 1))
    assert total == pytest.approx(discrete.beta(1.0, 2.5))
    assert discrete.alpha(0.3, 2.5) == pytest.approx(
        (discrete.beta(0.3 + 1e-6, 2.5) - discrete.beta(0.3 - 1e-6, 2.5)) / 2e-6
    )


def test_an_update_is_the_product_of_probabilities():
    z, y = torch.randn(3, K, generator=generator()), torch.randn(3, K, generator=generator(1))
    product = z.softmax(-1) * y.exp()
    torch.testing.assert_close(discrete.update(z, y).softmax(-1), product / product.sum(-1, keepdim=True))


def test_updates_with_large_messages_stay_finite():
    assert torch.isfinite(discrete.update(torch.zeros(K), torch.full((K,), 1e4)).softmax(-1)).all()


def test_a_chain_of_messages_has_the_law_of_the_flow():
    n, draws = 6, 100_000
    target = one_hot(torch.full((draws,), 2), K).double()
    g, z = generator(), torch.zeros(draws, K, dtype=torch.float64)
    for i in range(1, 5):
        z = discrete.update(z, discrete.sender(target, discrete.step_alpha(i, n, 0.8), g))
    beta = discrete.beta(4 / n, 0.8)
    for logits in (z, discrete.flow(target, 4 / n, 0.8, g)):
        expected = beta * (K * target[0] - 1)
        error = (beta * K / draws) ** 0.5
        assert float((logits.mean(0) - expected).abs().max()) < 4.5 * error
        assert float((logits.var(0) / (beta * K) - 1).abs().max()) < 4.5 * (2 / draws) ** 0.5


def test_the_joint_loss_equals_the_explicit_mixture():
    """With the same messages: log N(y; true class) - log sum_k p_k N(y; class k), K Gaussians in K dimensions."""
    target, logits, n, i = (
        one_hot(torch.tensor([0, 3]), K).double(),
        torch.randn(2, K, generator=generator()).double(),
        4,
        3,
    )
    a = discrete.step_alpha(i, n, 1.7)
    y = discrete.sender(target.expand(10, 2, K), a, generator(5))
    classes = torch.eye(K, dtype=torch.float64)
    terms = torch.stack(
        [logits.log_softmax(-1)[:, k] + discrete.log_sender(y, a, classes[k].expand_as(y)) for k in range(K)]
    )
    explicit = n * (discrete.log_sender(y, a, target.expand_as(y)) - terms.logsumexp(0)).mean(0)
    found = discrete.loss_discrete(target, logits, i, n, 1.7, generator(5), draws=10)
    torch.testing.assert_close(found, explicit, rtol=1e-10, atol=1e-10)


def test_the_marginal_loss_equals_a_plain_loop():
    target, logits, n, i, beta1 = one_hot(torch.tensor([1]), K).double(), torch.randn(1, K).double(), 4, 2, 3.0
    a = discrete.step_alpha(i, n, beta1)
    y = discrete.sender(target.expand(3, 1, K), a, generator(2))
    p, total = logits.softmax(-1)[0], 0.0

    def normal(v, m):
        return math.exp(-0.5 * (v - m) ** 2 / (a * K)) / math.sqrt(2 * math.pi * a * K)

    for draw in y[:, 0].tolist():
        for k, v in enumerate(draw):
            true = a * (K * float(target[0, k]) - 1)
            mixture = float(p[k]) * normal(v, a * (K - 1)) + (1 - float(p[k])) * normal(v, -a)
            total += math.log(normal(v, true)) - math.log(mixture)
    found = discrete.loss_discrete(target, logits, i, n, beta1, generator(2), draws=3, receiver="marginal")
    assert float(found) == pytest.approx(n * total / 3, rel=1e-9)


def test_the_discrete_loss_tends_to_the_continuous_one():
    logits = torch.tensor([0.3, -0.2, 0.9, 0.0, 0.4]).double()
    target, t, draws = one_hot(torch.tensor(2), K).double(), 0.5, 400_000
    n = 500
    found = discrete.loss_discrete(
        target.expand(draws, K), logits.expand(draws, K), int(t * n) + 1, n, 0.4, generator(), draws=1
    )
    exact = float(discrete.loss_continuous(target, logits.softmax(-1), t, 0.4))
    assert float(found.mean()) == pytest.approx(exact, abs=4 * float(found.std()) / draws**0.5 + 5 / n * exact)


def test_two_classes_are_read_as_one_number():
    z = torch.tensor([[0.0, math.log(3.0)]])
    torch.testing.assert_close(discrete.network_input(z), torch.tensor([[-0.5]]))
    assert discrete.network_input(torch.zeros(1, 3)).shape == (1, 3)


def test_the_reconstruction_is_the_cross_entropy():
    logits = torch.randn(4, K, generator=generator())
    x = torch.tensor([0, 1, 2, 3])
    expected = torch.nn.functional.cross_entropy(logits, x, reduction="none")
    torch.testing.assert_close(discrete.reconstruction(one_hot(x, K).float(), logits), expected)


def test_the_schedule_of_chembfn_rises_from_0_to_beta1():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    beta = discrete.entropy_linear_beta(t, 0.4, 89)
    assert float(beta[0]) == 0
    assert float(beta[-1]) == pytest.approx(0.4)
    assert discrete.entropy_linear_beta(0.5, 0.4, 89) == pytest.approx(float(beta[5]))
    assert bool((beta.diff() > 0).all())
