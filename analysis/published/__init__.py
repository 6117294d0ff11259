"""Numbers that others have published, beside ours: their sources and files, figures with both, verdicts."""
