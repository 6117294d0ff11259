"""What is run: the config of a run, the suites, and the published settings of agents per task."""
