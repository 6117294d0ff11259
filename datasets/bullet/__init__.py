"""d4rl-pybullet: its tasks, data and environments."""
