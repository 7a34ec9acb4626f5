"""Rollouts of reinforcement jobs at the API: shown, summed up, and graded anew."""
