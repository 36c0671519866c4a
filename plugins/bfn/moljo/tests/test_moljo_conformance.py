from headwater.testing import conformance

TestConformance = conformance("bfn-moljo")
