"""Decodes videos in threads or sandboxed processes, as many at once as memory allows."""
