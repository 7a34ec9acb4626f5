"""The HTTP API: OpenAI's files, fine-tuning jobs and models, and the gateway to inference."""
