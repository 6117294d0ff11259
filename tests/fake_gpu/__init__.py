"""CUDA paths on a machine without a GPU: fake tensors that say that they are on one, and what watches them."""
