"""Clips and films to glosses: the main use case, asyncio and sync."""
