"""Programs of the model families on devices: training, evaluation, inference."""
