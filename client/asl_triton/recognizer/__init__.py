"""Turns clips and films into glosses: the main use case, with asyncio and sync clients."""
