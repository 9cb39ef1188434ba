# The service on CPUs: no torch, no compiler, not root. Models are mounted, never part of it.
#   docker build -t anomaly-scoring:0.1.0 -f docker/service.Dockerfile .
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/venv
COPY docker/requirements.txt docker/requirements.cpu.txt /tmp/
RUN python -m venv --without-pip . \
 && python -m pip --python bin/python install --no-cache-dir --no-compile --no-deps -r /tmp/requirements.cpu.txt \
 && python -m pip --python bin/python check
# What nothing imports, 60 MB: the libraries' own tests, headers and tools, debugging symbols, and the copy of
# onnxruntime that is for programs in C.
RUN find . -type d \( -name tests -o -name include -o -path '*/f2py/src' -o -path '*/onnxruntime/transformers' \
      -o -path '*/onnxruntime/tools' -o -path '*/onnxruntime/quantization' -o -path '*/onnxruntime/datasets' \) \
      -prune -exec rm -rf {} + \
 && find . -type f \( -name '*.py[ix]' -o -name '*.pxd' -o -name '*.[ach]' -o -name 'libonnxruntime.so.*' \) -delete \
 && find . \( -path '*/uvloop/*.so' -o -path '*/httptools/*.so' \) -exec strip --strip-debug {} +
WORKDIR /app
COPY service ./service
# byte code of what is imported, and of nothing else: later the file system is read-only
RUN /opt/venv/bin/python -c "import service.__main__, onnxruntime, faiss"

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="anomaly-scoring" \
      org.opencontainers.image.description="Anomaly scores with a promised false-alarm rate, over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 anomaly \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin anomaly \
 && install -d -o 10001 -g 10001 /var/lib/anomaly
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
WORKDIR /app
# onnxruntime would report its use to its maker
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    ANOMALY_HOST=0.0.0.0 \
    ANOMALY_PORT=8000 \
    ANOMALY_MODELS_DIR=/models \
    ANOMALY_STATE_FILE=/var/lib/anomaly/serving.json
USER 10001:10001
VOLUME ["/var/lib/anomaly"]
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 \
  CMD ["python", "-I", "-S", "-c", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.environ['ANOMALY_PORT']), timeout=3); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "-m", "service"]
