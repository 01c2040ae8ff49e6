"""Evaluation: exact metrics, pictures and reports.  Imports nothing: the console needs the report's text alone."""
