"""Files that a user names, in a layout known from elsewhere or as flat arrays."""
