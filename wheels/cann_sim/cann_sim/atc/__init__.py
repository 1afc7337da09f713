"""The simulated ATC: ONNX graphs to OM files that cann_sim's pyACL runs, after the checks that the real ATC makes."""
