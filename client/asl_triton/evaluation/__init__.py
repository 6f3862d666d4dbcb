"""Accuracy on labelled clips."""
