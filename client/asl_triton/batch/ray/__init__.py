"""The batch engine for a Ray cluster."""
