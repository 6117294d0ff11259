"""The driver: offline updates, hand-over, online steps and evaluation of a pack of seeds in one process."""
