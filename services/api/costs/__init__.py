"""What training and answering cost: before, afterwards, and against a model elsewhere."""
