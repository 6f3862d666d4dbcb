"""Live recognition from a camera or stream."""
