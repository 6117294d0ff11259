"""How environments are seen: states that are kept while an episode is played, and drawn afterwards."""
