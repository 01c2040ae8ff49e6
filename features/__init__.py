"""Events to ids: Polars and Arrow, no model code."""
