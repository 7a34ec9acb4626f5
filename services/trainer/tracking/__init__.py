"""A job's metrics in Weights & Biases and MLflow."""
