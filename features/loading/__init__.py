"""Batches out of a store: in which order, for which rank, and in which layout."""
