"""Stages for developers: test suites, benchmarks, the coverage of cann_sim."""
