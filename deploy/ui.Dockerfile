# syntax=docker/dockerfile:1
# The page and the command line. `doctor` runs from this image too.
#
#     docker build --file deploy/ui.Dockerfile --tag asl-triton/ui:0.1.0 .
#
# To pin by digest: --build-arg PYTHON_IMAGE=python@sha256:..., which
# `docker buildx imagetools inspect python:3.12.13-slim-trixie` prints.
ARG PYTHON_IMAGE=python:3.12.13-slim-trixie

FROM ${PYTHON_IMAGE} AS packages
# Compile now, because the packages' folders are read-only at run time.
ENV UV_SYSTEM_PYTHON=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
WORKDIR /src
COPY deploy/requirements/build.txt deploy/requirements/ui.txt deploy/requirements/
RUN python -m pip install --no-cache-dir --require-hashes --only-binary :all: --requirement deploy/requirements/build.txt \
    && uv pip install --require-hashes --only-binary :all: --requirement deploy/requirements/ui.txt --target /opt/asl-triton/python
COPY pyproject.toml README.md LICENSE ./
COPY client/asl_triton client/asl_triton
COPY ui/asl_triton_ui ui/asl_triton_ui
# The installed package contains them.
COPY model_repository/recognize_sign model_repository/recognize_sign
COPY model_repository/recognize_sign_stream model_repository/recognize_sign_stream
RUN uv pip install --no-deps --no-build-isolation . --target /opt/asl-triton/python

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="asl-triton: page" \
      org.opencontainers.image.description="The page of asl-triton: upload a clip or sign to the camera, see ranked glosses" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
# Nothing is installed in a running container.
RUN python -m pip uninstall --yes pip
COPY --from=packages /opt/asl-triton/python /opt/asl-triton/python
# The root file system is read-only; uploads and other files go to /tmp.
ENV PYTHONPATH=/opt/asl-triton/python \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    GRADIO_TEMP_DIR=/tmp/gradio \
    GRADIO_ANALYTICS_ENABLED=False
USER 1000:1000
WORKDIR /tmp
RUN ["python", "-c", "import asl_triton.cli.app, asl_triton_ui, gradio"]
EXPOSE 7860
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/', timeout=4)"]
ENTRYPOINT ["python", "-m", "asl_triton"]
CMD ["ui", "--host", "0.0.0.0", "--port", "7860"]
