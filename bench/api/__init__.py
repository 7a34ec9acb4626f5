"""What the API costs, side by side with something that cannot be beaten: `python -m bench.api.NAME`."""
