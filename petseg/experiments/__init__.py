"""Experiments: comparisons of runs, and studies."""
