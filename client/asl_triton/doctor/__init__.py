"""Checks a server and its models."""
