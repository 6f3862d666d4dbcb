"""`recognize_sign`: decodes and recognizes videos inside Triton."""
