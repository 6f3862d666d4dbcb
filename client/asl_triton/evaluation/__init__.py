"""Accuracy on labeled clips."""
