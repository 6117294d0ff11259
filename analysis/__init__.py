"""Figures and tables from the files under `results/`; imports nothing of the harness. Schema: `results/README.md`."""
