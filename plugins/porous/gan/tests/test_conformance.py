from headwater.testing import conformance

TestConformance = conformance("porous-gan")
