"""Python environments, and the simulated CANN in them."""
