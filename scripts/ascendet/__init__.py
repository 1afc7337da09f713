"""Ascendet: detection models on Ascend NPUs, from pinned sources to COCO numbers.

The packages stand in an order, and each imports only from those before it (tests/unit/test_layers.py).
"""

__version__ = "0.1.0"
