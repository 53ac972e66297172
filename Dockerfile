# A small image around the command line tool:
#   docker build -t compress .
#   docker run --rm -v "$PWD:/work" compress run model.pt --data images --out out
FROM python:3.11-slim

# Where pip finds torch: leave empty for the default build (with CUDA libraries), or give the index of a CPU-only build.
ARG PIP_EXTRA_INDEX_URL=""

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY compress compress
COPY exporters exporters
# Versions are bounded in pyproject.toml.
# hadolint ignore=DL3013
RUN PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL}" pip install --no-cache-dir ".[demo]" \
    && useradd --create-home --uid 1000 compress \
    && mkdir /work && chown compress /work

USER 1000
WORKDIR /work
ENTRYPOINT ["compress"]
CMD ["--help"]
