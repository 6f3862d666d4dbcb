"""Served models: their contract, their folders, their known answers, and a server's status."""
