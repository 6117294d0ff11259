"""d4rl-pybullet: its tasks, its data (flat files), its environments and random episodes in them."""
