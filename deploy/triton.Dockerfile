# syntax=docker/dockerfile:1
# NVIDIA's Triton, with what `recognize_sign` and the entry point need. No weights: those are mounted.
#
#     docker build --file deploy/triton.Dockerfile --tag asl-triton/triton:0.1.0 .
#
# To pin by digest, which no one can move: `docker buildx imagetools inspect nvcr.io/nvidia/tritonserver:26.11-py3`
# says it, and --build-arg TRITON_IMAGE=nvcr.io/nvidia/tritonserver@sha256:... builds from it.
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.11-py3
# The same Python as in NVIDIA's image (Ubuntu 24.04), so that what is installed here runs there.
ARG PYTHON_IMAGE=python:3.12.13-slim-trixie

FROM ${PYTHON_IMAGE} AS packages
# Compiled here, once: nothing can be written beside the packages where they run.
ENV UV_SYSTEM_PYTHON=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
WORKDIR /src
COPY deploy/requirements/build.txt deploy/requirements/triton.txt deploy/requirements/
RUN python -m pip install --no-cache-dir --require-hashes --only-binary :all: --requirement deploy/requirements/build.txt \
    && uv pip install --require-hashes --only-binary :all: --requirement deploy/requirements/triton.txt --target /opt/asl-triton/python
COPY pyproject.toml README.md LICENSE ./
COPY client/asl_triton client/asl_triton
COPY deploy/asl_triton_deploy deploy/asl_triton_deploy
# Code, not weights: part of the package, because they have to fit it.
COPY model_repository/recognize_sign model_repository/recognize_sign
COPY model_repository/recognize_sign_stream model_repository/recognize_sign_stream
RUN uv pip install --no-deps --no-build-isolation . --target /opt/asl-triton/python

FROM ${TRITON_IMAGE}
LABEL org.opencontainers.image.title="asl-triton: Triton" \
      org.opencontainers.image.description="NVIDIA Triton serving sign-language models, with production flags and checked models" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT AND LicenseRef-NVIDIA-Deep-Learning-Container-License"
COPY --from=packages /opt/asl-triton/python /opt/asl-triton/python
# The root file system is read-only: what wants to write has /tmp, /run/asl-triton and /dev/shm. Triton's Python
# backend looks for packages on PYTHONPATH.
ENV PYTHONPATH=/opt/asl-triton/python \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    CUDA_CACHE_PATH=/tmp/.nv
USER 1000:1000
WORKDIR /tmp
# Fails the build, not the rollout, when NVIDIA's image has another Python.
RUN ["python3", "-c", "import cv2, asl_triton.triton_backend.service, asl_triton_deploy.production.flags"]
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
# Asks each model for a tiny clip: Triton says that it is ready while a model of it is dead. Then it ends Triton, and the
# container's restart policy starts it again.
HEALTHCHECK --interval=30s --timeout=30s --start-period=300s --retries=3 \
    CMD ["python3", "-m", "asl_triton_deploy.production.health", "--stop"]
# Behind NVIDIA's own entry point, which looks at the driver. Flags of tritonserver may follow.
CMD ["python3", "-m", "asl_triton_deploy.production"]
