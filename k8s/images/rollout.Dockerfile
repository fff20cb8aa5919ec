# Rollout servers beside a climb: the project's server and model, drawing with vLLM on GPUs.
#   docker build -f k8s/images/rollout.Dockerfile -t hillclimb/rollout:0.1.0 .
ARG PYTHON=docker.io/library/python:3.12.12-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/hillclimb
WORKDIR /src
COPY requirements/rollout.txt requirements/
RUN /opt/hillclimb/bin/pip install --no-deps --only-binary :all: -r requirements/rollout.txt
COPY . .
RUN /opt/hillclimb/bin/pip install --no-deps --no-build-isolation . \
 && /opt/hillclimb/bin/pip uninstall --yes pip \
 && /opt/hillclimb/bin/python -c "import torch, hillclimb.rollout.server, hillclimb.rollout.vllm_worker; assert torch.version.cuda"

FROM ${PYTHON}
# Triton compiles its kernels' launchers with a C compiler at the first use.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc ibverbs-providers libc6-dev libibverbs1 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 hillclimb \
 && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp hillclimb
COPY --from=build /opt/hillclimb /opt/hillclimb
ENV PATH=/opt/hillclimb/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    VLLM_USE_FLASHINFER_SAMPLER=0 DO_NOT_TRACK=1
USER 1000:1000
WORKDIR /tmp
CMD ["python", "-m", "hillclimb.rollout.vllm_worker", "--help"]
