"""What makes training data and trains; the nodes need none of it."""
