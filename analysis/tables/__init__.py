"""Tables of success as CSV, Markdown and LaTeX."""
