"""Engines: where the pieces of a preparation are worked off, in this process or by Ray."""
