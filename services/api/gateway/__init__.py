"""The way to the models and back: names, replicas, what is stored of the answers, and their repair."""
