# docker build -t icl_fast .                                    CPU kernels; any GPU through plain torch
# docker build -t icl_fast:cuda --build-arg KERNELS=cuda .      the CUDA kernels too
# TORCH_INDEX: where torch comes from; pytorch.org names one without CUDA, several gigabytes smaller than the default.
ARG KERNELS=cpu

FROM python:3.12-slim-trixie AS build-cpu
ENV ICL_FAST_CUDA=off
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# its python3 is 3.12 too, and its libraries are older than those of trixie, where what is built here runs
FROM nvidia/cuda:12.9.1-devel-ubuntu24.04 AS build-cuda
ENV ICL_FAST_CUDA=on
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM build-${KERNELS} AS build
WORKDIR /source
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY csrc csrc
COPY configs configs
COPY icl_fast icl_fast
RUN python3 -m venv /build && /build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-trixie
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
ARG TORCH=2.13.0
ARG TORCH_INDEX=
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$TORCH"
# hadolint ignore=DL3013
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/*.whl)[lab,ray]" && icl-fast info
RUN useradd --uid 1000 --create-home lab
USER 1000
WORKDIR /home/lab
COPY --chown=1000 configs configs
CMD ["icl-fast", "--help"]
