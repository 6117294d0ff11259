"""What is measured, each by a command of its own: see README.md."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # reproducible products on a GPU, as in python -m bench
