"""Sweeps: lists of hyperparameters become jobs, which are ranked, and the best model is kept."""
