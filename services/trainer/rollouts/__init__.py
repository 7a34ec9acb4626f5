"""Rollouts, on the supervisor's side: the model of a step is served, answers prompts, and graders reward these."""
