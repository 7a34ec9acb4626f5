"""Faster ways to compute what transformers' models compute, for every architecture whose parts are found in it."""
