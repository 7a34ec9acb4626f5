"""Servers that are compared. All run the same installed vLLM with the same arguments, each with what is its own."""
