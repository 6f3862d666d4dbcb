"""Writes results to files: tables, subtitles and ELAN tiers."""
