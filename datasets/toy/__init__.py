"""A toy family of tasks, for trying the project and testing it: no simulator, data in a second, microseconds a step."""
