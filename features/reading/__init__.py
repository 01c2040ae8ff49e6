"""Opens event files and side tables, whole or file by file, and finds what in them is no record."""
