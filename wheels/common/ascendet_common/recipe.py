"""The recipe's batch on any number of devices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How `ranks` devices make one optimizer step of the recipe's images."""

    recipe: int
    ranks: int
    per_rank: int
    accumulated: int

    @property
    def effective(self) -> int:
        """Images per optimizer step."""
        return self.ranks * self.per_rank * self.accumulated

    @property
    def lr_scale(self) -> float:
        """What the recipe's learning rate is multiplied by: linear scaling, 1 where the batch is the recipe's."""
        return self.effective / self.recipe

    @property
    def iterations(self) -> float:
        """Iterations that see as many images as one step of the recipe."""
        return self.recipe / (self.ranks * self.per_rank)

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.effective} images per step = {self.ranks} devices x {self.per_rank} images x "
            f"{self.accumulated} accumulated (recipe: {self.recipe})"
        )


def choose_batch(recipe: int, ranks: int, per_rank: int) -> Batch:
    """Return the batch with the most pictures per rank, up to `per_rank`, that equals the recipe's, or the nearest one.

    >>> print(choose_batch(64, 4, 4))
    64 images per step = 4 devices x 4 images x 4 accumulated (recipe: 64)
    >>> print(choose_batch(64, 32, 4))
    64 images per step = 32 devices x 2 images x 1 accumulated (recipe: 64)
    >>> choose_batch(64, 3, 4).lr_scale
    0.9375
    """
    exact = [size for size in range(1, per_rank + 1) if recipe % (ranks * size) == 0]
    size = max(exact) if exact else min(per_rank, max(1, recipe // ranks))
    return Batch(
        recipe=recipe, ranks=ranks, per_rank=size, accumulated=max(1, round(recipe / (ranks * size)))
    )
