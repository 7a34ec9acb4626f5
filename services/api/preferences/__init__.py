"""Preferences: taken in one by one, and made into training files."""
