"""Operators: how a column becomes ids, numbers or vectors, one operator a file."""
