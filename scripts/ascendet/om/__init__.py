"""Staged OM: export a checkpoint as ONNX stages, convert them with ATC, and detect objects with the result."""
