"""Files that a user names, by their content; which layout a file has, and who reads it."""
