"""Entries of a leaderboard: read, audited by named checks, ranked, shown."""
