"""Attacks on each entry point: the page, the service, the command line and production. Time and memory stay bounded."""
