"""What the API does under requests that mean it no good: `python -m bench.abuse`."""
