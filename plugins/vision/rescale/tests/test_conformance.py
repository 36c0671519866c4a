import pytest
from headwater.testing import conformance
from headwater.testing.suite import (
    Bench,
    check_interrupted_sampling,
    check_metrics_and_report,
    check_read_back,
    check_seeds,
)

TestConformance = conformance("vision-rescale")


class FirstBench(Bench):
    """The suite samples from the last stage, hiding; here from the others."""

    def __init__(self, stage, folder):
        super().__init__("vision-rescale", folder)
        self.stage = stage

    @property
    def run(self):
        return self.finished(self.stage)


@pytest.fixture(scope="module", params=["dlv", "hcflow"])
def bench(request, tmp_path_factory):
    return FirstBench(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize(
    "check",
    [check_seeds, check_read_back, check_interrupted_sampling, check_metrics_and_report],
    ids=lambda c: c.__name__.removeprefix("check_"),
)
def test_the_rescaling_stages_conform_too(bench, check):
    check(bench)
