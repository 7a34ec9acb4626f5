"""Who did what: the entries that requests leave in the audit log."""
