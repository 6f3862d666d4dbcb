# syntax=docker/dockerfile:1
# The image for all machines of the Ray cluster on which `asl-triton batch --engine ray` runs, head and workers.
#
#     docker build --file deploy/ray.Dockerfile --tag asl-triton/ray:0.1.0 .
#
# To pin by digest: --build-arg PYTHON_IMAGE=python@sha256:..., which
# `docker buildx imagetools inspect python:3.12.13-slim-trixie` prints.
ARG PYTHON_IMAGE=python:3.12.13-slim-trixie

FROM ${PYTHON_IMAGE} AS packages
# Compile now, because the packages' folders are read-only at run time.
ENV UV_SYSTEM_PYTHON=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
WORKDIR /src
COPY deploy/requirements/build.txt deploy/requirements/ray.txt deploy/requirements/
RUN python -m pip install --no-cache-dir --require-hashes --only-binary :all: --requirement deploy/requirements/build.txt \
    && uv pip install --require-hashes --only-binary :all: --requirement deploy/requirements/ray.txt --target /opt/asl-triton/python
COPY pyproject.toml README.md LICENSE ./
COPY client/asl_triton client/asl_triton
# The installed package contains them.
COPY model_repository/recognize_sign model_repository/recognize_sign
COPY model_repository/recognize_sign_stream model_repository/recognize_sign_stream
RUN uv pip install --no-deps --no-build-isolation . --target /opt/asl-triton/python

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="asl-triton: Ray" \
      org.opencontainers.image.description="A machine of the Ray cluster that recognizes an archive of clips with asl-triton" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
# Nothing is installed in a running container.
RUN python -m pip uninstall --yes pip
COPY --from=packages /opt/asl-triton/python /opt/asl-triton/python
# The root file system is read-only; Ray and other programs write to /tmp. KubeRay calls `ray` and `bash`.
ENV PATH=/opt/asl-triton/python/bin:$PATH \
    PYTHONPATH=/opt/asl-triton/python \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
WORKDIR /tmp
RUN ["python", "-c", "import asl_triton.batch.ray.runner, asl_triton.cli.app, gcsfs, s3fs"]
# Ray's own health check, of the agent on every machine of a cluster.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:52365/api/local_raylet_healthz', timeout=4)"]
CMD ["ray", "start", "--head", "--block"]
