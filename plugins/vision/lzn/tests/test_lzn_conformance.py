from headwater.testing import conformance

TestConformance = conformance("vision-lzn")
