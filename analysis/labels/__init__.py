"""How agents, tasks and counts are written and drawn, wherever they appear."""
