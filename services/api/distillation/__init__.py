"""Distillations: what a teacher has answered is filtered and made into a data set, a student is trained on it, and
compared with its base and with the teacher on rows that it has not seen."""
