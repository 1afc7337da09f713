"""Ascendet: detection models on Ascend NPUs, from pinned sources to COCO numbers.

One module per stage; a stage imports only stages before it (the order is `cli.STAGES`).
"""

__version__ = "0.1.0"
