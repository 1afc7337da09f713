"""Run the programs of a model family on devices: training, evaluation, inference."""
