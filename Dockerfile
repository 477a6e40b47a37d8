# Two stages: one installs, the other runs as an ordinary user. The steps are scripts, and tests run
# the same scripts without Docker (tests/house/test_docker_steps.py).
#
#   docker build -t polygraft .
#   docker run --rm -p 50051:50051 -p 9090:9090 -v polygraft:/var/lib/polygraft polygraft
#
# On a machine without a GPU, add this to the build for the much smaller CPU build of torch:
#   --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# On a machine with one: without that argument torch's CUDA build is installed, and Triton with it; run with
#   docker run --gpus all ... polygraft serve --host 0.0.0.0 --device cuda     (docs/gpu.md; untested)
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS install
ARG PIP_EXTRA_INDEX_URL
COPY . /source
RUN /source/scripts/docker/install.sh /opt/polygraft

FROM ${PYTHON_IMAGE}
# The CPU kernels are compiled for the processor they run on, when first used (docs/decisions/0010).
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/polygraft polygraft
COPY --from=install /opt/polygraft /opt/polygraft
COPY --from=install /source/scripts/docker/smoke.sh /usr/local/libexec/polygraft-smoke
# Why PYTHONSAFEPATH: the working directory must never provide modules.
ENV PATH=/opt/polygraft/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1
USER polygraft
WORKDIR /var/lib/polygraft
RUN /usr/local/libexec/polygraft-smoke /opt/polygraft
VOLUME /var/lib/polygraft
EXPOSE 50051 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["polygraft", "health", "--server", "127.0.0.1:50051"]
ENTRYPOINT ["polygraft"]
# 0.0.0.0 is what makes a published port reach the server; outside a container the default is 127.0.0.1.
CMD ["serve", "--host", "0.0.0.0", "--port", "50051", \
    "--set", "metrics_host=0.0.0.0", "--metrics-port", "9090", "--store", "/var/lib/polygraft"]
