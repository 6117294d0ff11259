"""What agents share: networks, flows, diffusions, critics, the optimiser. Nothing here is one paper's algorithm."""
