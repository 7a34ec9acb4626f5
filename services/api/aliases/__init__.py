"""Aliases: moving the pointer, choosing who answers, counting how that goes, and shadowing."""
