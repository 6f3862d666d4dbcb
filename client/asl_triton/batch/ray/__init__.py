"""The batch engine for Ray clusters."""
