"""Searching an allocation: what may be chosen, what it is worth, and which candidates to look at."""
