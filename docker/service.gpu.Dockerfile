# The service on NVIDIA GPUs: CUDA 12.8 and cuDNN 9 from the base, for onnxruntime-gpu and faiss-gpu-cu12. It serves by
# CPU as well where ANOMALY_PROVIDERS=cpu. The host needs the NVIDIA container toolkit.
#   docker build -t anomaly-scoring-gpu:0.1.0 -f docker/service.gpu.Dockerfile .
ARG CUDA_IMAGE=nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04

# hadolint ignore=DL3006
FROM ${CUDA_IMAGE} AS base
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*

FROM base AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/venv
COPY docker/requirements.txt docker/requirements.gpu.txt /tmp/
# --no-deps: faiss would bring CUDA a second time
RUN python3 -m venv --without-pip . \
 && python3 -m pip --python bin/python install --no-cache-dir --no-compile --no-deps -r /tmp/requirements.gpu.txt \
 && find . -type d \( -name tests -o -name include \) -prune -exec rm -rf {} +
WORKDIR /app
COPY service ./service
# faiss looks for CUDA in packages of pip unless told that it is installed; onnxruntime would report its use to its maker
ENV _FAISS_WHEEL_DISABLE_CUDA_PRELOAD=1 \
    ORT_DISABLE_TELEMETRY=1
# byte code of what is imported, and of nothing else: later the file system is read-only
RUN /opt/venv/bin/python -c "import service.__main__, onnxruntime, faiss"

FROM base
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="anomaly-scoring-gpu" \
      org.opencontainers.image.description="Anomaly scores with a promised false-alarm rate, over HTTP, on NVIDIA GPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 anomaly \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin anomaly \
 && install -d -o 10001 -g 10001 /var/lib/anomaly
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    _FAISS_WHEEL_DISABLE_CUDA_PRELOAD=1 \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ANOMALY_HOST=0.0.0.0 \
    ANOMALY_PORT=8000 \
    ANOMALY_PROVIDERS=cuda! \
    ANOMALY_MODELS_DIR=/models \
    ANOMALY_STATE_FILE=/var/lib/anomaly/serving.json
USER 10001:10001
VOLUME ["/var/lib/anomaly"]
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=4s --start-period=120s --retries=3 \
  CMD ["python", "-I", "-S", "-c", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.environ['ANOMALY_PORT']), timeout=3); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "-m", "service"]
