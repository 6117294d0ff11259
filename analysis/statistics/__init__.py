"""Runs to numbers with intervals: metrics, comparisons of agents, curves."""
