"""Fine-tuning jobs: taking them in, steering them, telling their story."""
