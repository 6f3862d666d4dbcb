"""Published weights: where they are and how they become bundles."""
