"""Reads run folders and refuses by name what does not follow the contract."""
