"""From runs to numbers with intervals: of arrays (metrics, comparisons), and of a suite (curves, scores, pairs)."""
