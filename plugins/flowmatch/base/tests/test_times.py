import pytest
import torch
from headwater.errors import UsageError
from headwater_flow.times import beta, draw_times, logit_normal, uniform
from scipy import stats


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize(
    ("quantile", "law"),
    [
        (uniform, stats.uniform()),
        (beta(0.5), stats.beta(0.5, 0.5)),
        (logit_normal(0.2, 1.3), None),
    ],
    ids=["uniform", "beta", "logit-normal"],
)
def test_times_follow_their_law(quantile, law, stratified):
    t = draw_times(4000, torch.Generator().manual_seed(0), quantile=quantile, stratified=stratified)
    if law is None:
        t, law = torch.logit(t.double()), stats.norm(0.2, 1.3)
    assert stats.kstest(t.numpy(), law.cdf).pvalue > 1e-3


def test_stratified_times_lie_one_in_each_part_and_in_no_order():
    t = draw_times(64, torch.Generator().manual_seed(0))
    assert (t.sort().values * 64).floor().tolist() == list(range(64))
    assert not torch.equal(t, t.sort().values)


def test_antithetic_times_mirror_one_another():
    t = draw_times(10, torch.Generator().manual_seed(0), antithetic=True)
    torch.testing.assert_close(t[:5] + t[5:], torch.ones(5))
    with pytest.raises(UsageError, match="come in pairs"):
        draw_times(3, antithetic=True)
