# The service as an image: its packages and its model, no pip, no compiler, no torch, a user without rights.
#
#   docker build -t sparse-encoder .                          docker run --read-only -p 8080:8080 sparse-encoder
#   docker build -t sparse-encoder-training --target training .
#
# BASE_IMAGE: any image with Python 3.11, its venv module, and glibc.
# EXTRAS: extras of pyproject.toml to install besides, separated by spaces.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS pip
# Byte code is written at the end, in a way that does not tell when.
ENV PIP_QUIET=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ONLY_BINARY=:all: PIP_COMPILE=0 \
    PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1
WORKDIR /build
COPY pyproject.toml constraints.txt ./
COPY hashes hashes
# pip lives outside of the environment that it fills, so that it stays behind. Hashes of what is not pinned itself, but by
# a constraint, are understood by newer ones than the base may have.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/venv \
 && sed -n '/^pip==/,/[^\\]$/p' hashes/service.txt > pip.txt \
 && /opt/pip/bin/pip install --require-hashes --requirement pip.txt
# The lines of pyproject.toml for the extras given.
RUN echo "import sys, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*project['dependencies'], *(r for extra in sys.argv[1:] for r in project['optional-dependencies'][extra]), sep=chr(10))" > needed.py

FROM pip AS build
ARG EXTRAS=""
RUN python3 needed.py ${EXTRAS} > requirements.txt \
 && /opt/pip/bin/pip --python /opt/venv/bin/python install --require-hashes --requirement requirements.txt \
    --constraint constraints.txt --constraint hashes/service.txt --constraint hashes/training.txt
COPY LICENSE /opt/sparse-encoder/
COPY sparse_encoder /opt/sparse-encoder/sparse_encoder
COPY app /opt/sparse-encoder/app
# What is in it, and under which licences: by tools that stay behind as well.
RUN python3 -m venv --without-pip /opt/tools \
 && /opt/pip/bin/pip --python /opt/tools/bin/python install --require-hashes cyclonedx-bom pip-licenses \
    --constraint constraints.txt --constraint hashes/service.txt \
 && /opt/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
    --output-file /opt/sparse-encoder/sbom.cdx.json /opt/venv/bin/python \
 && /opt/tools/bin/pip-licenses --python /opt/venv/bin/python --with-urls --with-license-file --no-license-path \
    --format plain-vertical --output-file /opt/sparse-encoder/licences.txt
WORKDIR /opt/sparse-encoder
# The root is read-only later: byte code is written now.
RUN /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib app sparse_encoder \
 && mkdir /models

FROM pip AS training
ARG EXTRAS="train"
# setuptools first: kiwipiepy's model is published as a source that it unpacks.
RUN python3 needed.py ${EXTRAS} > requirements.txt \
 && /opt/pip/bin/pip --python /opt/venv/bin/python install --require-hashes setuptools \
    --constraint constraints.txt --constraint hashes/service.txt \
 && /opt/pip/bin/pip --python /opt/venv/bin/python install --require-hashes --requirement requirements.txt \
    --no-binary kiwipiepy_model --no-build-isolation \
    --constraint constraints.txt --constraint hashes/service.txt --constraint hashes/training.txt
COPY . /opt/sparse-encoder
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /opt/sparse-encoder
USER 10001:10001
ENTRYPOINT ["python", "-m", "training"]

FROM ${BASE_IMAGE}
# The base image's own pip: hidden, not removed from its layer, and nothing in the container can run it.
RUN rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/bin/pip* /usr/lib/python3*/ensurepip \
           /usr/local/lib/python3*/ensurepip /usr/share/python-wheels
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SPARSE_ENCODER_HOST=0.0.0.0 \
    SPARSE_ENCODER_PORT=8080 \
    SPARSE_ENCODER_CACHE_DIR=/var/cache/sparse-encoder
WORKDIR /opt/sparse-encoder
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['SPARSE_ENCODER_PORT'] + '/readyz', timeout=4)"]
USER 10001:10001
ENTRYPOINT ["python", "-m", "app"]

# What changes least comes first.
COPY --from=build --chown=10001:10001 /models /models
VOLUME /models
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/sparse-encoder /opt/sparse-encoder

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sparse-encoder" \
      org.opencontainers.image.description="Korean text to sparse vectors for OpenSearch" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
