"""Runs that are cut off, moved and resumed with other settings."""
