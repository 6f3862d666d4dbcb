# syntax=docker/dockerfile:1
# NVIDIA's Triton, with the packages that `recognize_sign` and the entry point need. Weights are mounted, not included.
#
#     docker build --file deploy/triton.Dockerfile --tag asl-triton/triton:0.1.0 .
#
# A digest, unlike a tag, cannot be moved. `docker buildx imagetools inspect nvcr.io/nvidia/tritonserver:26.11-py3`
# prints it, and --build-arg TRITON_IMAGE=nvcr.io/nvidia/tritonserver@sha256:... builds from it.
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.11-py3
# The same Python as in NVIDIA's image (Ubuntu 24.04), so that the packages installed here run there.
ARG PYTHON_IMAGE=python:3.12.13-slim-trixie

FROM ${PYTHON_IMAGE} AS packages
# Compile now, because the packages' folders are read-only at run time.
ENV UV_SYSTEM_PYTHON=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
WORKDIR /src
COPY deploy/requirements/build.txt deploy/requirements/triton.txt deploy/requirements/
RUN python -m pip install --no-cache-dir --require-hashes --only-binary :all: --requirement deploy/requirements/build.txt \
    && uv pip install --require-hashes --only-binary :all: --requirement deploy/requirements/triton.txt --target /opt/asl-triton/python
COPY pyproject.toml README.md LICENSE ./
COPY client/asl_triton client/asl_triton
COPY deploy/asl_triton_deploy deploy/asl_triton_deploy
# These models are code without weights, and part of the package because they have to match its version.
COPY model_repository/recognize_sign model_repository/recognize_sign
COPY model_repository/recognize_sign_stream model_repository/recognize_sign_stream
RUN uv pip install --no-deps --no-build-isolation . --target /opt/asl-triton/python

FROM ${TRITON_IMAGE}
LABEL org.opencontainers.image.title="asl-triton: Triton" \
      org.opencontainers.image.description="NVIDIA Triton serving sign-language models, with production flags and checked models" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT AND LicenseRef-NVIDIA-Deep-Learning-Container-License"
COPY --from=packages /opt/asl-triton/python /opt/asl-triton/python
# The root file system is read-only, except for /tmp, /run/asl-triton and /dev/shm. Triton's Python backend finds
# packages on PYTHONPATH.
ENV PYTHONPATH=/opt/asl-triton/python \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    CUDA_CACHE_PATH=/tmp/.nv
USER 1000:1000
WORKDIR /tmp
# If NVIDIA's image has another Python, fail the build rather than the rollout.
RUN ["python3", "-c", "import cv2, asl_triton.triton_backend.service, asl_triton_deploy.production.flags"]
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
# Sends each model a tiny clip, because Triton reports ready even if a model is dead. In that case it stops Triton, and
# the container's restart policy starts it again.
HEALTHCHECK --interval=30s --timeout=30s --start-period=300s --retries=3 \
    CMD ["python3", "-m", "asl_triton_deploy.production.health", "--stop"]
# This runs after NVIDIA's own entry point, which checks the driver. More flags of tritonserver may follow.
CMD ["python3", "-m", "asl_triton_deploy.production"]
