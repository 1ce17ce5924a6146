"""A study: models, recipes, seeds and metrics of one file, run cell by cell, and a report of all with its tests."""
