"""What a job needs of a machine's memory, and what the machine has."""
