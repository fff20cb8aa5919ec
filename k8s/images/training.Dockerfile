# Stages that train, sample and tokenize: CUDA torch and DeepSpeed, and of Dagster only its pipes.
#   docker build -f k8s/images/training.Dockerfile -t hillclimb/training:0.1.0 .
ARG PYTHON=docker.io/library/python:3.11.14-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 DS_BUILD_OPS=0
RUN python -m venv /opt/hillclimb
WORKDIR /src
COPY requirements/training.txt requirements/cuda.txt requirements/
# DeepSpeed comes as source; it is built with the lock's own setuptools, and no op is compiled.
RUN /opt/hillclimb/bin/pip install --no-deps "$(grep -i '^setuptools==' requirements/training.txt)" \
 && /opt/hillclimb/bin/pip install --no-deps --no-build-isolation --only-binary :all: \
    --no-binary deepspeed -r requirements/training.txt -r requirements/cuda.txt
COPY . .
RUN /opt/hillclimb/bin/pip install --no-deps --no-build-isolation . \
 && /opt/hillclimb/bin/pip uninstall --yes pip \
 && /opt/hillclimb/bin/python -c "import deepspeed, torch, hillclimb.stages.climb; assert torch.version.cuda"

FROM ${PYTHON}
# NCCL loads libibverbs where nodes have InfiniBand or RoCE.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ibverbs-providers libibverbs1 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 hillclimb \
 && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp hillclimb
COPY --from=build /opt/hillclimb /opt/hillclimb
ENV PATH=/opt/hillclimb/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /tmp
CMD ["python", "-m", "hillclimb.stages", "--help"]
