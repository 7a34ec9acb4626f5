"""The trainer: an arq worker that supervises processes that train: one a job, several for one, or one for several."""
