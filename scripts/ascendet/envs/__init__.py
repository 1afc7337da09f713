"""Python environments and the simulated CANN inside them."""
