"""Published weights: where to get them, and how to turn them into bundles."""
