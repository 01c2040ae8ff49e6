"""Encoded rows on disk: splits, the quality gate, shards with a manifest, new files, and engines that write them."""
