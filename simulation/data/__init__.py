"""Data sets: fetching, importing, encoding and one in-memory form for any size."""
