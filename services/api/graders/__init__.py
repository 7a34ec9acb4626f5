"""Graders at the API: checked, run, and given the judges that they ask."""
