"""Evaluates an adapter with the measures of the paper's tables. The nodes need none of it."""
