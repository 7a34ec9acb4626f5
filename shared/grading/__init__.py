"""Grading: from an answer and its row to a number."""
