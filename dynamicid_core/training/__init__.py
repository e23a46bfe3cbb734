"""Training and its data sets. The nodes need none of it."""
