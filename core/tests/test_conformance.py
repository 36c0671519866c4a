from headwater.testing import conformance

TestConformance = conformance("toy")
