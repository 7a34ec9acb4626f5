"""What a model's owner may set for it, and what can be refused of that."""
