"""Finds the signer in a video: one box per clip, and how sure it is."""
