"""Surgery: the only code that changes a model."""
