"""The flat layout of D4RL's files, one row per step, in which bullet's data, recordings and most users' files are."""
