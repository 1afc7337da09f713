"""Data sets: declare, fetch, generate, take in and check them."""
