# Two images around the command line tool; the first is what a plain build gives.
#   docker build -t compress .                                  CPU, slim
#   docker build -t compress:cuda --target cuda .               NVIDIA's TensorRT base: CUDA, TensorRT, ONNX Runtime on CUDA
#   docker run --rm -v "$PWD:/work" compress run model.pt --data images --out out
#   docker run --rm --gpus all -v "$PWD:/work" compress:cuda doctor
# The folder that is mounted has to be writable for user 1000, or add --user "$(id -u):$(id -g)".
ARG PYTHON_IMAGE=python:3.11.11-slim-bookworm
ARG NVIDIA_IMAGE=nvcr.io/nvidia/tensorrt:25.03-py3

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY compress compress
COPY exporters exporters
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${NVIDIA_IMAGE} AS cuda
COPY --from=wheel /wheels /wheels
# An environment of its own that still sees the TensorRT of the base. Versions are bounded in pyproject.toml.
RUN python3 -m venv --system-site-packages /opt/compress \
    && /opt/compress/bin/pip install --no-cache-dir "$(echo /wheels/*.whl)[cuda,demo]" \
    && rm -r /wheels \
    && (id 1000 >/dev/null 2>&1 || useradd --create-home --uid 1000 compress) \
    && mkdir -p /work && chown 1000 /work
ENV PATH=/opt/compress/bin:${PATH} \
    COMPRESS_CACHE=/tmp/compress-cache \
    ORT_DISABLE_TELEMETRY=1
USER 1000
WORKDIR /work
HEALTHCHECK --interval=5m --timeout=60s CMD ["compress", "doctor"]
ENTRYPOINT ["compress"]
CMD ["--help"]

FROM ${PYTHON_IMAGE} AS cpu
# Where pip finds a torch without CUDA libraries; empty takes the one of the registry, which brings gigabytes of them.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY --from=wheel /wheels /wheels
RUN python3 -m venv /opt/compress \
    && PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" /opt/compress/bin/pip install --no-cache-dir "$(echo /wheels/*.whl)[demo]" \
    && rm -r /wheels \
    && useradd --create-home --uid 1000 compress \
    && mkdir -p /work && chown 1000 /work
ENV PATH=/opt/compress/bin:${PATH} \
    COMPRESS_CACHE=/tmp/compress-cache \
    ORT_DISABLE_TELEMETRY=1
USER 1000
WORKDIR /work
HEALTHCHECK --interval=5m --timeout=60s CMD ["compress", "doctor"]
ENTRYPOINT ["compress"]
CMD ["--help"]
