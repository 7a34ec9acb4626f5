"""Projects, service accounts and keys, as an administrator sees them."""
