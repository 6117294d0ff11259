"""Robomimic: its tasks, data and environments, and scripted experts that make demonstrations."""
