"""Numbers that others have published, beside ours: their sources, figures with both, verdicts."""
