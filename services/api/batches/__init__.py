"""Batches: files of requests that are answered when nobody else wants the models.

creation.py takes them in, runner.py shares them out among the api processes, run.py brings one to its end: it reads
input_file.py, has working.py and answering.py do the requests, keeps results.py, and publishes output_files.py.
"""
