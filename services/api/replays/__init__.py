"""Base replay: a new base arrives, and what was trained on the old one is trained and judged on it."""
