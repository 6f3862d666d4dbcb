"""Finds the signer in a video: one box per clip, with a confidence."""
