"""Batches: files of requests that are answered when nobody else wants the models.

creation.py takes them in, runner.py hands them to the api processes, run.py brings one to its end with the help of
input_file.py, answering.py, results.py and output_files.py.
"""
