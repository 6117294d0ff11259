"""Published files: servers and mirrors, downloads that resume, checksums."""
