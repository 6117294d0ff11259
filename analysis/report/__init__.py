"""One HTML page of everything, the protocol card, and the explanation of a point of a figure."""
