"""From JSONL rows to batches of tokens, the process that tokenises, and the folder that keeps tokens."""
