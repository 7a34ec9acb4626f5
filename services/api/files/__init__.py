"""Files: uploads whole and in parts, and what becomes of the bytes."""
