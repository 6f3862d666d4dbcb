"""Checks that a server and its models are what they should be."""
