"""The report: what packs and benchmarks measured, what tuning cost and what builds where, as one page and as JSON."""
