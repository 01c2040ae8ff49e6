"""The model server: HTTP in front of the scorer, in worker processes that follow an alias of the registry.

One process looks into the registry and tests what it finds; the workers serve what it announces.
"""
