"""What agents train on: windows of a data set, the ring of online transitions, trajectories of on-policy agents."""
