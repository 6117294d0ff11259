"""A run's folder on disk: the contract of its files, who may write them, checkpoints, and where a run comes from."""
