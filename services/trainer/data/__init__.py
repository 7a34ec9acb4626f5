"""From JSONL rows to batches of tokens: pure functions, no sockets, no clocks."""
