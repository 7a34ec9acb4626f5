"""Whether what a model is asked, and how well it answers, is still what it was.

traits.py says what is noted of a conversation, measures.py compares two sets of such notes, or of scores.
"""
