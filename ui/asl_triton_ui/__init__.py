"""The web page, `asl-triton ui`: upload, record or sign live, and see ten glosses and when each was signed."""
