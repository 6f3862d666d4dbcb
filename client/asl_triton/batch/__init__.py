"""Batches of many clips, resumable with a journal, on this machine or on a Ray cluster."""
