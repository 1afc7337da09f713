"""What torch loads by the entry point `torch.backends`: who comes here has imported the package, and that is all.

It is a module of its own because a program may import the package before torch: torch then comes here while the
package waits for torch.
"""


def load() -> None:
    """Do nothing more."""
