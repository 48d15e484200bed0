"""Evaluation: inference, metrics, statistics, cost, corruptions."""
