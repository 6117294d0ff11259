"""How agents, tasks, counts and scores are written and drawn, wherever they appear."""
