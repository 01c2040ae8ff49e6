"""One file a claim: each prints its figures beside a peer's, `python -m benchmarks.NAME --json`."""
