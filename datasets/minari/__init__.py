"""Minari: its sets as tasks and data, and export of any data into one."""
