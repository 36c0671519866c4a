import pytest
import torch
from headwater_flow.losses import velocity_loss
from headwater_flow.paths import AffinePath, BridgePath, TargetPath, draw, score_weight, variance_preserving
from headwater_flow.schedules import VP, LinearVP, Polynomial

PATHS = {
    "cfm": AffinePath(sigma=0.3),
    "polynomial": AffinePath(Polynomial(3)),
    "vp-diffusion": AffinePath(VP()),
    "linear-vp": AffinePath(LinearVP()),
    "vp": variance_preserving(0.1),
    "target": TargetPath(0.05),
    "bridge": BridgePath(0.8),
}


@pytest.fixture
def ends():
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 12, 2, 3, generator=generator, dtype=torch.float64)
    return x0, x1, torch.rand(12, generator=generator, dtype=torch.float64) * 0.9 + 0.05


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", PATHS)
def test_the_velocity_is_the_rate_of_change_at_fixed_ends_and_noise(name, dtype, tolerance, ends):
    path = PATHS[name]
    x0, x1, t = (v.to(dtype) for v in ends)
    noise = torch.randn(x1.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)

    def position(t):
        return path.mean(t, x0, x1) + path.std(t, x1) * noise

    x, rate = torch.func.jvp(position, (t,), (torch.ones_like(t),))
    velocity = path.velocity(t, x, x0, x1)
    if name == "bridge":  # without the 1e-8 in its denominator
        middle, t = velocity - (x1 - x0), t.reshape(-1, 1, 1)
        velocity = middle * (1 + 1e-8 / (2 * t * (1 - t))) + x1 - x0
    torch.testing.assert_close(velocity, rate, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PATHS)
def test_a_scalar_time_equals_the_same_time_for_all(name, ends):
    path, (x0, x1, _) = PATHS[name], ends
    same = torch.full((len(x0),), 0.3, dtype=x0.dtype)
    for a, b in zip(
        draw(path, 0.3, x0, x1, torch.Generator().manual_seed(2)),
        draw(path, same, x0, x1, torch.Generator().manual_seed(2)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("matcher", "path", "sigma"),
    [
        ("ConditionalFlowMatcher", AffinePath(sigma=0.3), 0.3),
        ("TargetConditionalFlowMatcher", TargetPath(0.3), 0.3),
        ("VariancePreservingConditionalFlowMatcher", variance_preserving(0.3), 0.3),
        ("SchrodingerBridgeConditionalFlowMatcher", BridgePath(0.8), 0.8),
    ],
)
def test_paths_equal_those_of_torchcfm(matcher, path, sigma, ends):
    # Not in the extra `test`: it brings torchvision and lightning along.
    cfm = pytest.importorskip("torchcfm.conditional_flow_matching", reason="torchcfm is the oracle of the paths")
    theirs = getattr(cfm, matcher)(sigma=sigma)
    x0, x1, t = ends
    noise = torch.randn(x1.shape, generator=torch.Generator().manual_seed(1), dtype=x1.dtype)
    x = theirs.sample_xt(x0, x1, t, noise)
    torch.testing.assert_close(path.mean(t, x0, x1) + path.std(t, x1) * noise, x, rtol=0, atol=1e-6)
    torch.testing.assert_close(path.velocity(t, x, x0, x1), theirs.compute_conditional_flow(x0, x1, t, x))
    weight = theirs.compute_lambda(t)
    torch.testing.assert_close(score_weight(path, t, t, sigma).expand(12), torch.as_tensor(weight).expand(12).to(t))


def test_score_weight_turns_the_score_into_minus_the_noise(ends):
    # lambda score = 2 std/sigma^2 . (-noise/std) is -2/sigma^2 times the noise, whatever the time.
    x0, x1, t = ends
    path = BridgePath(1.0)
    x, _, noise = draw(path, t, x0, x1, torch.Generator().manual_seed(3))
    score = -(x - path.mean(t, x0, x1)) / path.std(t, x1) ** 2
    torch.testing.assert_close(score_weight(path, t, x, 1.0) * score, -2 * noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["mse", "l1", "pseudo-huber"])
def test_the_loss_equals_a_plain_loop(kind):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    mask, weight = torch.tensor([1, 0, 1, 1, 0]).bool(), torch.rand(5, generator=generator, dtype=torch.float64)
    total, n = 0.0, 0
    for i in range(5):
        for d in range(3):
            if mask[i]:
                gap = float(a[i, d] - b[i, d])
                cost = {"mse": gap**2, "l1": abs(gap), "pseudo-huber": 0.25 * ((1 + (gap / 0.5) ** 2) ** 0.5 - 1)}[kind]
                total, n = total + float(weight[i]) * cost, n + 1
    found = velocity_loss(a, b, kind=kind, mask=mask.unsqueeze(1), weight=weight, delta=0.5)
    assert float(found) == pytest.approx(total / n, rel=1e-12)


def test_masked_entries_may_hold_anything():
    a = torch.tensor([[1.0], [float("nan")]], requires_grad=True)
    loss = velocity_loss(a, torch.zeros(2, 1), mask=torch.tensor([[True], [False]]))
    loss.backward()
    assert float(loss.detach()) == 1.0
    assert a.grad.ravel().tolist() == [2.0, 0.0]
