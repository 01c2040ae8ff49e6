"""What a measured process runs: one script a side, a JSON request on standard input, a JSON answer last."""
