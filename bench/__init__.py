"""The harness, in rooms from the ground up: runs, protocol, training, tools, grid."""
