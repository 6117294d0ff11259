"""Pictures of a suite: curves, comparisons, ablations, norms of gradients."""
