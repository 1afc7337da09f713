"""What an evaluation's detections show beside the ground truth: numbers, charts and pictures; see `__main__`."""
