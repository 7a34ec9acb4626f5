"""The trainer: an arq worker that supervises one training process per job."""
