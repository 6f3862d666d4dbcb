"""From a video file to frames, and from frames to windows of crops."""
