# Training, calibrating, publishing: torch and all. Models, runs and data are mounted below /training.
#   docker build -t anomaly-training:0.1.0 -f docker/training.Dockerfile .
# torch's wheels hold CUDA; PIP_EXTRA_INDEX_URL may name an index of smaller ones.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY docker/requirements.txt docker/requirements.cpu.txt docker/requirements.training.txt /tmp/
RUN python -m venv --without-pip /opt/venv \
 && python -m pip --python /opt/venv/bin/python install --no-cache-dir -r /tmp/requirements.training.txt \
 && python -m pip --python /opt/venv/bin/python check

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="anomaly-training" \
      org.opencontainers.image.description="Detectors trained, calibrated and published for the anomaly scoring service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 anomaly \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin anomaly \
 && install -d -o 10001 -g 10001 /training /training/models /training/runs /training/data
COPY --from=build /opt/venv /opt/venv
WORKDIR /training
COPY service ./service
COPY training ./training
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    ANOMALY_DATA_DIR=/training/data
USER 10001:10001
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]
