"""Several models beside the dense one: what is measured of each, what can be said of it, and a report in three forms."""
