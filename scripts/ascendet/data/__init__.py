"""Data sets: declared, fetched, made or taken in, and checked."""
