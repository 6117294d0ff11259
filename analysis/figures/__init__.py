"""Pictures of success: curves, comparisons, ablations, norms of gradients."""
