from headwater.testing import conformance

TestConformance = conformance("flow-tsgen")
