"""Results as files: tables, subtitles, ELAN tiers."""
