"""What the api bears: `python -m bench.load`, or one scene with `--only`.

`reads` and `creates` ask for jobs and make them, beside a bare Litestar handler; `queued` looks at the same with 10,000
jobs waiting; `events` has 200 readers of a job's events; `slow` has 64 chats whose readers hardly read; `soak` mixes it
all for as long as it is told to, and watches memory and file handles.
"""
