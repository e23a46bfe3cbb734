"""Measures what an adapter can do, as the paper's tables do; the nodes need none of it."""
