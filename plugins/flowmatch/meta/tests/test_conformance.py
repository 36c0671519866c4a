import pytest
from headwater.testing import conformance
from headwater.testing.suite import (
    Bench,
    check_interrupted_sampling,
    check_metrics_and_report,
    check_read_back,
    check_seeds,
)

pytest.importorskip("anndata", reason="predictions are written as h5ad too")

TestConformance = conformance("flow-meta")


class FlowBench(Bench):
    """The suite samples from the last stage, the baseline; here from the first, the method itself."""

    @property
    def run(self):
        return self.finished("flow")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return FlowBench("flow-meta", tmp_path_factory.mktemp("flow"))


@pytest.mark.parametrize(
    "check",
    [check_seeds, check_read_back, check_interrupted_sampling, check_metrics_and_report],
    ids=lambda c: c.__name__.removeprefix("check_"),
)
def test_the_flow_conforms_too(bench, check):
    check(bench)
