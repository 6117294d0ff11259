"""Gymnasium's MuJoCo robots, learned from scratch: their tasks and environments. There are no data."""
