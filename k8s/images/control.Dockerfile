# The control plane: Dagster's webserver, daemon, code location and run workers, MLflow, and the
# stages that read documents and make problems. No torch.
#   docker build -f k8s/images/control.Dockerfile -t hillclimb/control:0.1.0 .
ARG PYTHON=docker.io/library/python:3.11.14-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/hillclimb
WORKDIR /src
COPY requirements/control.txt requirements/
RUN /opt/hillclimb/bin/pip install --no-deps --only-binary :all: -r requirements/control.txt
COPY . .
RUN /opt/hillclimb/bin/pip install --no-deps --no-build-isolation . \
 && /opt/hillclimb/bin/pip uninstall --yes pip \
 && HILLCLIMB_ROOT=/tmp/root /opt/hillclimb/bin/python -c "import hillclimb.definitions"

FROM ${PYTHON}
RUN groupadd --gid 1000 hillclimb \
 && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp hillclimb
COPY --from=build /opt/hillclimb /opt/hillclimb
ENV PATH=/opt/hillclimb/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
WORKDIR /tmp
CMD ["hillclimb", "--help"]
