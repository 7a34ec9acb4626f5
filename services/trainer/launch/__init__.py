"""Starting processes, hearing them, commanding and stopping them."""
