"""Tables of a suite as CSV, Markdown and LaTeX: the one type, and what scores and pairs fill it with."""
