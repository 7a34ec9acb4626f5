"""A job from its queue to its end, on the worker's side: no model library is loaded here."""
