"""Minari: its data sets, each of them a task whose environment is recovered from it; reads and writes them."""
