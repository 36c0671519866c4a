from headwater.testing import conformance

TestConformance = conformance("gfn-oc")
