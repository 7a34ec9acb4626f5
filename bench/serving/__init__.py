"""Serving, side by side with stock vLLM: `python -m bench.serving`. What each file does:

__main__.py     the command: which scenes, in which order, and the table
stage.py        base, adapters and servers that the scenes share
adapters.py     adapters of random numbers, and copies with other bytes
server.py       a server in processes of its own: start, memory, end
sides/          one server each: ours, and vLLM's own with and without LoRA
asking.py       streamed requests, and when each token came
figures.py      runs, medians and lines of the table
decode.py       tokens per second with adapters, and without
prefill.py      long prompts
publish.py      from publishing an adapter to its first token
spread.py       many adapters in turns
many.py         thousands of registered adapters
beside.py       whether a request for the base is answered as if it were alone
cycles.py       memory over many loads and unloads
replicas.py     two replicas, and the loss of one
gateway.py      the API in front of a replica
start.py        from the start of the process to the first answer
"""
